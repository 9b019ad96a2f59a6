"""JSON files of any layout: one row a line, a list of rows, one row, or rows spread over several lines. The layout is
seen from the content and not from the name. The elements of a list are read one by one; their number is their line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from swiftlet.data.columns import ANSWERS, CHATS, ROW_KEYS
from swiftlet.data.filekind import Encoding, reading, suffix_of
from swiftlet.data.jsonlines import (
    JsonReader,
    Keep,
    count_lines,
    explain,
    is_json,
    kind_of,
    lines_of,
    no_row,
    read_json_lines,
    sha1,
)
from swiftlet.data.rows import BadRow, Origin, Record
from swiftlet.data.textcoding import UTF8_BOM
from swiftlet.errors import DataError, describe

TEXT_KEYS = {*ANSWERS, "query", "prompt", "instruction", "question", "problem", "input", "text"}
_SPACE = re.compile(r"[ \t\r\n]*")
_OPEN = re.compile(r"[{\[,:]$")
NUM_JUDGED = 20


def read_json(path: Path, keep: Keep | None = None) -> Iterator[Record | BadRow]:
    """Yield the rows of a JSON file in order.

    Raises:
        DataError: the file as a whole cannot be read as rows.
    """
    if is_one_row_a_line(path):
        yield from read_json_lines(path, keep)
        return
    for index, (row, raw, byte, fault) in enumerate(_elements(path)):
        if keep is None or keep(index):
            origin = Origin(str(path), index + 1, byte)
            if not isinstance(row, dict):
                yield BadRow(origin, "schema", no_row(row), sha1(raw.encode()))
            elif fault:
                yield BadRow(origin, "repeated_key", fault, sha1(raw.encode()))
            else:
                yield Record(row, origin)


def count_json(path: Path) -> int:
    """Return the number of rows, bad ones among them.

    Raises:
        DataError: the file as a whole cannot be read as rows.
    """
    return count_lines(path) if is_one_row_a_line(path) else sum(1 for _ in _elements(path))


def is_one_row_a_line(path: Path) -> bool:
    """Return whether every line is a row of its own, as opposed to one value that spans lines."""
    lines = [line.strip().decode("utf-8", "replace") for line, _ in islice(lines_of(path), 1 + NUM_JUDGED)]
    first, *others = lines or [""]
    if first[:1] not in ("[", "{"):
        return True
    if first[0] == "[" and suffix_of(path) == ".json":
        return False
    if not others:
        return first[0] == "{" and suffix_of(path) != ".json"
    # a row with a comma behind it is whole
    if is_json(first.rstrip(", \t")) or not _OPEN.search(first):
        return True
    # a value that goes on, or one row that is cut off among others
    return 2 * sum(line[0] == "{" and is_json(line) for line in others) > len(others)


class _Element(NamedTuple):
    """A value, its text, its byte, and what is wrong with it although it is JSON."""

    value: Any
    text: str
    byte: int
    fault: str | None


def _elements(path: Path) -> Iterator[_Element]:
    """Yield the values of a list, or values that stand one behind the other."""
    text, skipped = _text_of(path)
    reader = _Reader(path, text, skipped)
    if text[reader.skip_space()] == "[":
        yield from reader.list_items()
        return
    first = reader.value()
    if reader.skip_space() == len(text):
        _check_single(path, first.value)
        yield first
        return
    yield first
    while reader.skip_space() < len(text):
        yield reader.value()


def _text_of(path: Path) -> tuple[str, int]:
    with reading(path) as file:
        data = file.read()
    skipped = len(UTF8_BOM) if data.startswith(UTF8_BOM) else 0
    try:
        return data[skipped:].decode("utf-8"), skipped
    except UnicodeDecodeError as error:
        at = error.start + skipped
        line = data.count(b"\n", 0, at) + 1
        Encoding(path).check(data[skipped:], error, line, skipped)
        raise DataError(
            f"{path}: not UTF-8 at line {line}, byte {at} (0x{data[at]:02x})",
            "mend that place, or write the rows as JSON Lines, where one bad line costs one row",
        ) from error


class _Reader:
    """Decodes one value after the other out of a text, keeping the place in bytes."""

    def __init__(self, path: Path, text: str, byte: int) -> None:
        self.path, self.text = path, text
        self.at = 0
        self._counted, self._byte = 0, byte
        self._json = JsonReader()

    def skip_space(self) -> int:
        """Move over white space and return where that ends."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def value(self) -> _Element:
        """Return the value that starts here, and move behind it."""
        start = self.skip_space()
        self._byte += len(self.text[self._counted : start].encode())
        self._counted = start
        try:
            value, self.at = self._json.read_at(self.text, start)
        except json.JSONDecodeError as error:
            self._fail(f"not JSON: {explain(error)}", error.pos)
        except RecursionError:
            self._fail("nested too deep", start)
        except ValueError:
            self._fail("not JSON: a number of too many digits", start)
        return _Element(value, self.text[start : self.at], self._byte, self._json.fault())

    def list_items(self) -> Iterator[_Element]:
        """Yield the items of the list that starts here; nothing may stand behind it."""
        self.at = self.skip_space() + 1
        is_first = True
        while self._here() != "]":
            if not is_first:
                if self._here() != ",":
                    end = "the list is cut off" if not self._here() else "a comma is missing between two rows"
                    self._fail(f"not JSON: {end}", self.at)
                self.at += 1
                if self._here() == "]":
                    self._fail("not JSON: a trailing comma before ]", self.at)
            if not self._here():
                self._fail("not JSON: the list is cut off", self.at)
            yield self.value()
            is_first = False
        self.at += 1
        if self.skip_space() != len(self.text):
            self._fail("something behind the end of the list", self.at)

    def _here(self) -> str:
        return self.text[self.skip_space() : self.at + 1]

    def _fail(self, what: str, at: int) -> NoReturn:
        line = self.text.count("\n", 0, at) + 1
        what = re.sub(r", column \d+", "", what)
        column = at - self.text.rfind("\n", 0, at)
        raise DataError(
            f"{self.path}: line {line}, column {column}: {what}",
            "mend that place, or write the rows as JSON Lines, where one bad line costs one row",
        )


def _check_single(path: Path, value: Any) -> None:
    """Make sure that a file of one object holds a row and not a table.

    Raises:
        DataError: it holds the rows under a key, under their names, or column by column.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{path}: top level is {kind_of(value)}, expected a list of rows", "write one object a row"
        )
    as_columns = [key for key in TEXT_KEYS & value.keys() if isinstance(value[key], (list, dict))]
    if as_columns:
        raise DataError(
            f"{path}: column {sorted(as_columns)[0]} holds all rows: the file is written column by column",
            'write it row by row: to_json(path, orient="records", lines=True)',
        )
    if ROW_KEYS & value.keys() or any(name in value for name in CHATS):
        return
    keys = ", ".join(describe(key, 40).strip("'\"") for key in list(value)[:8])
    with_keys = f"an object with keys {keys}" if value else "an empty object"
    message = f"{path}: top level is {with_keys}, expected a list of rows"
    typed = shlex.quote(str(path))
    inside = next((key for key, item in value.items() if isinstance(item, list) and _are_rows(item)), None)
    if inside is not None:
        path_of_rows = f".{inside}[]" if inside.isidentifier() else f".[{json.dumps(inside)}][]"
        # the export of a dataset viewer wraps each row once more
        path_of_rows += (
            ".row" if all(isinstance(item.get("row"), dict) for item in value[inside][:10]) else ""
        )
        raise DataError(message, f"take {inside} out: jq -c '{path_of_rows}' {typed} > rows.jsonl")
    if any(isinstance(item, dict) and isinstance(item.get("file_name"), str) for item in value.values()):
        raise DataError(
            f"{path}: a registry of datasets, not rows",
            f"give its folder and a name in it: --dataset {path.parent}:{describe(next(iter(value)), 40)[1:-1]}",
        )
    if value and all(isinstance(item, dict) for item in value.values()):
        raise DataError(message, f"it maps names to rows; take the rows: jq -c '.[]' {typed} > rows.jsonl")
    raise DataError(message, "write a list of objects, or one object a line")


def _are_rows(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) for item in items[:10])
