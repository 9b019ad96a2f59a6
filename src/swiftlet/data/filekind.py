"""What a file is by its first bytes: opens compressed files, and names those that are not data before a reader sees
them. The name's suffix says which reader is wanted; the bytes must agree.
"""

from __future__ import annotations

import bz2
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
from swiftlet.data.textcoding import UTF8_BOM, encoding_of, is_cesu8, wide_encoding
from swiftlet.errors import DataError

HEAD = 4096
SCANNED = 1 << 24
_JSON_ROWS = re.compile(rb'(\[\s*)?\{\s*"[^"\n]*"\s*:')
TABLES = (".parquet", ".arrow")
TAR_AT = 257

MAGIC = 8
ZSTD = b"\x28\xb5\x2f\xfd"
FROM_CESU8 = (
    """python3 -c 'import sys; text = sys.stdin.buffer.read().decode("utf-8", "surrogatepass"); """
    """sys.stdout.buffer.write(text.encode("utf-16", "surrogatepass").decode("utf-16").encode())'"""
)


class Packing(NamedTuple):
    """First bytes of compressed files, the command that unpacks them, and what opens them, None where nothing does."""

    magic: bytes
    tool: str
    opener: Callable[..., Any] | None


PACKINGS = (
    Packing(b"\x1f\x8b", "gzip", gzip.open),
    Packing(b"BZh", "bzip2", bz2.open),
    Packing(b"\xfd7zXZ\x00", "xz", lzma.open),
    Packing(ZSTD, "zstd", None),
)


class Fault(NamedTuple):
    """First bytes of files that are not data, what they are and what to do."""

    magic: bytes
    what: str
    hint: str


ENCRYPTED = Fault(b"PARE", "an encrypted Parquet file", "write it without encryption: no keys are taken here")
FAULTS = (
    Fault(b"version https://git-lfs", "a Git LFS pointer, not the data", "run git lfs pull in its folder"),
    Fault(
        b"PK\x03\x04",
        "a zip or Excel file (it starts with PK)",
        "unpack it, or save the sheet as CSV (UTF-8)",
    ),
    Fault(b"\xd0\xcf\x11\xe0", "an old Excel or Office file", "save the sheet as CSV (UTF-8)"),
    Fault(ZSTD, "compressed with zstd", "unpack it with zstd -d"),
    ENCRYPTED,
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


def packing_of(head: bytes) -> Packing | None:
    """Return how a file is compressed, None where it is not."""
    return next((packing for packing in PACKINGS if head.startswith(packing.magic)), None)


def _packing_at(path: Path) -> Packing | None:
    with open(path, "rb") as file:
        return packing_of(file.read(MAGIC))


def open_bytes(path: Path) -> IO[bytes]:
    """Return the bytes of a file, unpacked when it is compressed, whatever its name says.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        packing = _packing_at(path)
        opener: Callable[..., Any] = open if packing is None or packing.opener is None else packing.opener
        return opener(path, "rb")
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
    outer = _packing_at(path)
    is_packed = outer is not None and outer.opener is not None
    if outer is not None and is_packed and (inner := packing_of(head)) is not None:
        raise _packed_twice(path, outer, inner)
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


def _packed_twice(path: Path, outer: Packing, inner: Packing) -> DataError:
    target = f"unpacked-{unpacked_name(unpacked_name(path.name))}"
    return DataError(
        f"{path}: compressed twice ({inner.tool} inside {outer.tool})",
        f"unpack it: {outer.tool} -dc {shlex.quote(str(path))} | {inner.tool} -dc > {shlex.quote(target)}",
    )


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
    if suffix_of(path) not in TABLES and (encoding := wide_encoding(head)):
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


class Encoding:
    """The encoding of a file whose bytes are not all UTF-8.

    Args:
        is_row: says whether a line, once decoded, is a row.
    """

    def __init__(self, path: Path, is_row: Callable[[str], bool] | None = None) -> None:
        self.path, self._is_row = path, is_row
        self._is_asked = False

    def check(self, raw: bytes, error: UnicodeDecodeError, line: int, byte: int) -> None:
        """Make sure that bytes which are not UTF-8 are damaged, and the file is in no other encoding.

        Args:
            raw: a line, or the whole file.
            line: where its fault is.
            byte: where `raw` begins.

        Raises:
            DataError: the file as a whole is in another encoding.
        """
        encoding = "CESU-8" if is_cesu8(raw) else None
        if encoding is None and not self._is_asked:
            self._is_asked = True
            with reading(self.path) as file:
                encoding = encoding_of(file.readlines(SCANNED), self._is_row)
        if encoding is not None:
            shown = {"gb18030": "GBK"}.get(encoding, encoding.upper().replace("_", "-"))
            raise DataError(
                f"{self.path}: not UTF-8 at line {line}, byte {byte + error.start} (0x{raw[error.start]:02x}); "
                f"it looks like {shown}",
                _converting(self.path, shown),
            ) from error


def _converting(path: Path, encoding: str) -> str:
    packing = _packing_at(path)
    program = FROM_CESU8 if encoding == "CESU-8" else f"iconv -f {encoding} -t UTF-8"
    source = shlex.quote(str(path))
    if packing is not None:
        command = f"{packing.tool} -dc {source} | {program}"
    else:
        command = f"{program} < {source}" if encoding == "CESU-8" else f"{program} {source}"
    name = path.name if packing is None else unpacked_name(path.name)
    return f"convert it: {command} > {shlex.quote(f'utf8-{name}')}"
