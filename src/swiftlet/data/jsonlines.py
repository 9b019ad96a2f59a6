"""JSON Lines and plain text lines: one row a line, a bad line costs one row. Only a line feed ends a line."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from swiftlet.data.filekind import Encoding, reading
from swiftlet.data.rows import BadRow, Origin, Record
from swiftlet.data.textcoding import UTF8_BOM
from swiftlet.errors import describe

Keep = Callable[[int], object]


def sha1(raw: bytes) -> str:
    """Return the hexadecimal sha1 that stands for a row in reports."""
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest()


def lines_of(path: Path) -> Iterator[tuple[bytes, Origin]]:
    """Yield the lines that are not blank, each with its place and without a byte order mark.

    A mark may stand before any line: files were joined. A file without any line feed is cut at carriage returns.

    Raises:
        DataError: the file cannot be read to its end.
    """
    name = str(path)
    with reading(path) as file:
        byte = 0
        for number, line in enumerate(_cut(file), 1):
            start, byte = byte, byte + len(line)
            if line.startswith(UTF8_BOM):
                line, start = line[len(UTF8_BOM) :], start + len(UTF8_BOM)
            if line and not line.isspace():
                yield line, Origin(name, number, start)


def _cut(file: IO[bytes]) -> Iterator[bytes]:
    first = file.readline()
    if first.endswith(b"\n") or b"\r" not in first.rstrip():
        yield first
        yield from file
    else:
        yield from first.replace(b"\r", b"\n").splitlines(keepends=True)


def count_lines(path: Path) -> int:
    """Return the number of lines that are not blank."""
    return sum(1 for _ in lines_of(path))


class Decoder:
    """UTF-8 bytes to text for one file, which decides once whether the whole file is in another encoding."""

    def __init__(self, path: Path, is_row: Callable[[str], bool] | None = None) -> None:
        self._encoding = Encoding(path, is_row)

    def decode(self, line: bytes, origin: Origin) -> str | BadRow:
        """Return the text of a line, or why it has none.

        Raises:
            DataError: the file as a whole is in another encoding.
        """
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self._encoding.check(line, error, origin.line, origin.byte)
            detail = f"byte 0x{line[error.start]:02x} at byte {error.start} of the line is not UTF-8"
            return BadRow(origin, "utf8", detail, sha1(line))


class JsonReader:
    """Reads JSON and notes a key that stands twice in one object: json alone would keep the last value, unsaid."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def read(self, text: str) -> Any:
        """Return the value of a text; raises as json.loads does."""
        self._repeated = []
        return self._decoder.decode(text)

    def read_at(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value that starts there, and where it ends; raises as json.loads does."""
        self._repeated = []
        return self._decoder.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self._repeated += [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        return found

    def fault(self) -> str | None:
        """Return what is wrong with the value that was read last, although it is JSON; None when nothing is."""
        if not self._repeated:
            return None
        return f"key {describe(self._repeated[0], 40)} stands twice in one object"


def read_json_lines(path: Path, keep: Keep | None = None) -> Iterator[Record | BadRow]:
    """Yield the rows of a JSON Lines file in order.

    Args:
        keep: takes the number of a row, from 0, and says whether it is wanted; the others are not parsed.

    Raises:
        DataError: the file as a whole is in another encoding than UTF-8.
    """
    decoder, reader = Decoder(path, is_json), JsonReader()
    for index, (line, origin) in enumerate(lines_of(path)):
        if keep is None or keep(index):
            text = decoder.decode(line, origin)
            yield text if isinstance(text, BadRow) else _parse(text, line, origin, reader)


def read_text_lines(path: Path, keep: Keep | None = None) -> Iterator[Record | BadRow]:
    """Yield one row with the column `text` a line of a text file.

    Raises:
        DataError: the file as a whole is in another encoding than UTF-8.
    """
    decoder = Decoder(path)
    for index, (line, origin) in enumerate(lines_of(path)):
        if keep is None or keep(index):
            text = decoder.decode(line, origin)
            if isinstance(text, BadRow):
                yield text
            elif "\0" in text:
                yield _with_nul(line, origin)
            else:
                yield Record({"text": text.rstrip("\r\n")}, origin)


def _with_nul(line: bytes, origin: Origin) -> BadRow:
    detail = "NUL bytes (the file is damaged, for instance by a crash while writing)"
    return BadRow(origin, "nul", detail, sha1(line))


def is_json(text: str) -> bool:
    """Return whether a text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str, line: bytes, origin: Origin, reader: JsonReader) -> Record | BadRow:
    try:
        row = reader.read(text)
    except json.JSONDecodeError as error:
        if b"\0" in line:
            return _with_nul(line, origin)
        return BadRow(origin, "json", f"not JSON: {explain(error)}", sha1(line))
    except RecursionError:
        return BadRow(origin, "nesting", "nested too deep", sha1(line))
    except ValueError:
        return BadRow(origin, "json", "not JSON: a number of too many digits", sha1(line))
    if not isinstance(row, dict):
        return BadRow(origin, "schema", no_row(row), sha1(line))
    if fault := reader.fault():
        return BadRow(origin, "repeated_key", fault, sha1(line))
    return Record(row, origin)


def no_row(value: Any) -> str:
    """Return what a value is that should be a row, and what makes rows of such values."""
    how = ""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        how = "; a chat is written {\"messages\": [...]}: jq -c '{messages: .}' FILE (of a list of chats '.[] | ...')"
    elif isinstance(value, str) and value.lstrip().startswith("{") and is_json(value):
        how = "; its text is JSON once more: jq -c fromjson FILE (of a list '.[] | fromjson')"
    return f"{kind_of(value)}, expected an object{how}"


def kind_of(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and not math.isfinite(value):
        return f"a number ({'NaN' if math.isnan(value) else 'Infinity'})"
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), f"a value of type {type(value).__name__}")


def explain(error: json.JSONDecodeError) -> str:
    """Return what is wrong at the place of a JSON error, the likely slip, and the column, without the row's text."""
    text, at = error.doc, min(error.pos, len(error.doc.rstrip("\r\n")))
    column = f"column {at - text.rfind(chr(10), 0, at)}"
    before, after = text[:at].rstrip(), text[at:].lstrip()
    if re.match(r"[\[{]+\s*'", text.lstrip()):
        return f"single quotes, {column} (a Python dict was printed; write it with json.dumps)"
    if before.endswith(",") and after[:1] in ("}", "]") or text[at:].lstrip(", \t")[:1] in ("}", "]"):
        return f"a trailing comma, {column}"
    if error.msg.startswith("Unterminated string"):
        return f"a string without its end, {column} (the line is cut off)"
    if error.msg.startswith("Invalid control character") and not text[at:].strip("\r\n"):
        return f"a string does not end on its line, {column} (a raw line break inside it: write \\n; or it is cut off)"
    if error.msg.startswith("Invalid control character"):
        return f"a raw line break or control character inside a string, {column} (write \\n for a line break)"
    if error.msg.startswith("Invalid \\"):
        return f"an invalid escape in a string, {column} (write \\\\ for a backslash)"
    if re.match(r"(None|True|False|undefined)\b", after):
        return f"a word that JSON does not know, {column} (write null, true or false)"
    if after.startswith(",") and before.endswith(("}", "]")):
        return f"a comma behind the row, {column} (JSON Lines has none between rows)"
    if error.msg.startswith("Extra data"):
        return f"something behind the end of the value, {column}"
    if not after:
        return f"the line ends too early, {column}"
    if error.msg.startswith("Expecting ',' delimiter") and before.endswith('"'):
        return f"a comma is missing, or a quote inside a string is not escaped, {column}"
    return f"{error.msg[:1].lower()}{error.msg[1:]}, {column}"
