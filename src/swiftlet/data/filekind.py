"""What a file is by its first bytes: opens compressed files, and names those that are not data before a reader sees
them. The name's suffix says which reader is wanted; the bytes must agree.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from swiftlet.config.filenames import SUFFIXES, unpacked_name
from swiftlet.data.columns import ROW_KEYS
from swiftlet.errors import DataError

HEAD = 4096
UTF8_BOM = b"\xef\xbb\xbf"
CANDIDATES = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252")
SCANNED = 1 << 24
_ASCII = bytes(range(128))
_JSON_ROWS = re.compile(rb'(\[\s*)?\{\s*"[^"\n]*"\s*:')
TABLES = (".parquet", ".arrow")
TAR_AT = 257
PACKED = (gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile)

OPENERS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)


class Fault(NamedTuple):
    """First bytes of files that are not data, what they are and what to do."""

    magic: bytes
    what: str
    hint: str


FAULTS = (
    Fault(b"version https://git-lfs", "a Git LFS pointer, not the data", "run git lfs pull in its folder"),
    Fault(
        b"PK\x03\x04",
        "a zip or Excel file (it starts with PK)",
        "unpack it, or save the sheet as CSV (UTF-8)",
    ),
    Fault(b"\xd0\xcf\x11\xe0", "an old Excel or Office file", "save the sheet as CSV (UTF-8)"),
    Fault(b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with zstd -d"),
    Fault(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    Fault(b"Rar!", "a rar archive", "unpack it"),
    Fault(b"%PDF", "a PDF", "export its text as .txt or .jsonl"),
    Fault(b"SQLite format 3", "an SQLite database", "export a table as CSV or JSON Lines"),
    Fault(b"\x89HDF", "an HDF5 file", "export it as Parquet or JSON Lines"),
    *(
        Fault(b"\x80" + bytes([protocol]), "a Python pickle, which is never read", "write it as JSON Lines")
        for protocol in range(2, 6)
    ),
    Fault(b"\xff\xfe\x00\x00", "UTF-32 text", "convert it with iconv -f UTF-32 -t UTF-8"),
    Fault(b"\x00\x00\xfe\xff", "UTF-32 text", "convert it with iconv -f UTF-32 -t UTF-8"),
    Fault(b"\xff\xfe", "UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
    Fault(b"\xfe\xff", "UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
)


def suffix_of(path: Path) -> str:
    """Return the suffix that chooses the reader, lower case, without that of a compression."""
    name = unpacked_name(path.name)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), Path(name).suffix)


def open_bytes(path: Path) -> IO[bytes]:
    """Return the bytes of a file, unpacked when it is compressed, whatever its name says.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
        for start, opener in OPENERS:
            if magic.startswith(start):
                return opener(path, "rb")
        return open(path, "rb")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file as `open_bytes` and say so when it turns out to be damaged while it is read.

    Raises:
        DataError: the file cannot be read to its end.
    """
    with open_bytes(path) as file:
        try:
            yield file
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path}: the file is damaged or cut off ({error})", "fetch it again") from error


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked, after making sure that it can be data.

    Raises:
        DataError: it is empty, damaged, or something else than its name says.
    """
    with reading(path) as file:
        head = file.read(HEAD)
        is_packed = isinstance(file, PACKED)
    if not head:
        raise DataError(f"{path}: the file is empty (0 bytes)", "fetch or write it again")
    for fault in FAULTS:
        if head.startswith(fault.magic):
            raise DataError(f"{path}: {fault.what}", fault.hint)
    if head[TAR_AT:].startswith(b"ustar"):
        raise DataError(f"{path}: a tar archive", "unpack it with tar -xf")
    if is_packed and (head.startswith((b"PAR1", b"ARROW1")) or suffix_of(path) in TABLES):
        raise DataError(
            f"{path}: a table inside a compressed file", "unpack it: Parquet and Arrow are read as they are"
        )
    _check_text_or_table(path, head)
    return head


def _check_text_or_table(path: Path, head: bytes) -> None:
    is_parquet = head.startswith(b"PAR1")
    wants_parquet = suffix_of(path) == ".parquet"
    if wants_parquet and not is_parquet:
        looks = " (it looks like JSON)" if head.lstrip()[:1] in (b"{", b"[") else ""
        raise DataError(f"{path}: not Parquet: no PAR1 at the start{looks}", "rename it after what it holds")
    if is_parquet and not wants_parquet:
        raise DataError(f"{path}: Parquet under another name", "rename it to end in .parquet")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{path}: a web page, not data (a page to sign in or an error?)", "download it again")
    if suffix_of(path) == ".txt":
        _check_plain_text(path, head)
    if suffix_of(path) not in TABLES and (encoding := _wide_encoding(head)):
        raise DataError(
            f"{path}: {encoding[:6]} text without a byte order mark",
            _converting(path, encoding),
        )


def _check_plain_text(path: Path, head: bytes) -> None:
    """Make sure that a .txt file is no rows of JSON and no table: all of that would be trained on as it is written."""
    start = head.removeprefix(UTF8_BOM).lstrip()
    if _JSON_ROWS.match(start):
        suffix = ".json" if start.startswith(b"[") else ".jsonl"
        raise DataError(f"{path}: rows of JSON, not plain text", f"rename it to end in {suffix}")
    first = start.partition(b"\n")[0].decode("utf-8", "replace").strip()
    for separator, suffix in ((",", ".csv"), ("\t", ".tsv")):
        names = [name.strip(' "') for name in first.split(separator)]
        if len(ROW_KEYS.intersection(names)) > 1:
            raise DataError(
                f"{path}: a table with the columns {', '.join(names)[:80]}, not plain text",
                f"rename it to end in {suffix}",
            )


def _wide_encoding(head: bytes) -> str | None:
    """Return the encoding of two or four bytes a character that a head is in; none has NUL bytes but these.

    Bytes of other texts, taken as pairs, can be rare characters; so few NUL bytes count only where the head is neither
    UTF-8 nor nearly ASCII, as with a Chinese text whose only NUL bytes are those of its line feeds.
    """
    is_damaged = len(head.translate(None, _ASCII)) * 20 < len(head) or _is_utf8(head)
    if b"\0" not in head or (head.count(0) * 4 < len(head) and is_damaged):
        return None
    little, big = ("UTF-32LE", "UTF-16LE"), ("UTF-32BE", "UTF-16BE")
    for encoding in little + big if head[1::2].count(0) > head[0::2].count(0) else big + little:
        try:
            # It bears with half a character at the end.
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        if text and all(character.isprintable() or character.isspace() for character in text):
            return encoding
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end == len(head) and error.reason == "unexpected end of data"
    return True


def foreign_encoding(path: Path, is_row: Callable[[str], bool] | None = None) -> str | None:
    """Return the encoding that the file as a whole seems to be in, None when it is UTF-8 with damaged places.

    A file is of another encoding when lines with bytes above 127 exist, none of them is UTF-8, and in that encoding
    they are text.

    Args:
        is_row: says whether a line, once decoded, is a row; one of the lines must be.
    """
    foreign: list[bytes] = []
    with reading(path) as file:
        for line in file.readlines(SCANNED):
            if line.isascii():
                continue
            try:
                line.removeprefix(UTF8_BOM).decode("utf-8")
            except UnicodeDecodeError:
                foreign.append(line)
            else:
                if not line.removeprefix(UTF8_BOM).isascii():
                    return None
    return _best_encoding(foreign[:200], is_row) if foreign else None


def _best_encoding(lines: list[bytes], is_row: Callable[[str], bool] | None) -> str | None:
    decoded = {}
    for name in CANDIDATES:
        try:
            texts = [line.decode(name) for line in lines]
        except UnicodeDecodeError:
            continue
        if is_row is None or any(is_row(text) for text in texts):
            decoded[name] = _strangeness("".join(texts))
    return min(decoded, key=lambda name: decoded[name]) if decoded else None


def _strangeness(text: str) -> float:
    """Return how unlike written language the characters above 127 are: 0 for common letters, 1 for rare signs."""
    high = [character for character in text if ord(character) > 127]
    common = sum(_is_common(character) for character in high)
    return 1 - common / max(1, len(high))


def _is_common(character: str) -> bool:
    code = ord(character)
    if 0x4E00 <= code <= 0x9FFF:
        return _is_frequent(character, "gb2312", range(0xB0, 0xD8)) or _is_frequent(
            character, "big5", range(0xA4, 0xC7)
        )
    latin_or_punctuation = 0xC0 <= code <= 0x17F or 0x2010 <= code <= 0x2026
    return (
        latin_or_punctuation
        or 0x3000 <= code <= 0x30FF
        or 0xAC00 <= code <= 0xD7A3
        or 0xFF01 <= code <= 0xFF5E
    )


def _is_frequent(character: str, encoding: str, first_bytes: range) -> bool:
    """Return whether a Chinese character lies in the part of an encoding that holds the frequent ones."""
    try:
        return character.encode(encoding)[0] in first_bytes
    except UnicodeEncodeError:
        return False


def not_utf8(path: Path, line: int, byte: int, value: int, encoding: str) -> DataError:
    """Return the error of a file in another encoding, with the command that converts it."""
    shown = {"gb18030": "GBK"}.get(encoding, encoding.upper().replace("_", "-"))
    return DataError(
        f"{path}: not UTF-8 at line {line}, byte {byte} (0x{value:02x}); it looks like {shown}",
        _converting(path, shown),
    )


def _converting(path: Path, encoding: str) -> str:
    source, target = shlex.quote(str(path)), shlex.quote(f"utf8-{path.name}")
    return f"convert it: iconv -f {encoding} -t UTF-8 {source} > {target}"
