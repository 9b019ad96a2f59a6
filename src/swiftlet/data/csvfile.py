"""Tables of text (csv, tsv): every cell stays the text that it is; a row with the wrong number of cells is a bad row.
The separator follows from the name: comma for .csv, tab for .tsv.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from swiftlet.data.filekind import Encoding, open_bytes, reading, suffix_of
from swiftlet.data.jsonlines import Keep, sha1
from swiftlet.data.rows import BadRow, Origin, Record
from swiftlet.data.textcoding import UTF8_BOM
from swiftlet.errors import DataError, describe

LONGEST_CELL = 1 << 27
NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}


class _Lines:
    """The physical lines of a table as text, with the number and byte of the one that comes next."""

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self._file, self._encoding = file, Encoding(path)
        self.number, self.byte, self.last = 1, 0, ""
        self.fault: tuple[str, str] | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        raw = line.encode("utf-8", "surrogateescape")
        if not line.isascii():
            self._check(raw)
        if "\0" in line:
            self.fault = ("nul", f"line {self.number} holds NUL bytes (the file is damaged)")
        self.number += 1
        self.byte += len(raw)
        self.last = line.removeprefix("\ufeff") if self.number == 2 else line
        return self.last

    def _check(self, raw: bytes) -> None:
        """Note a line that is not UTF-8; stop when the whole file is in another encoding."""
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._encoding.check(raw, error, self.number, self.byte)
            self.fault = ("utf8", f"byte 0x{raw[error.start]:02x} in line {self.number} is not UTF-8")


def read_csv(path: Path, keep: Keep | None = None) -> Iterator[Record | BadRow]:
    """Yield the rows of a table in order, as objects of texts.

    Raises:
        DataError: the header or the quoting is broken, or the file is in another encoding than UTF-8.
    """
    for index, (cells, names, origin, fault) in enumerate(_records(path)):
        if keep is None or keep(index):
            yield _row(cells, names, origin, fault)


def count_csv(path: Path) -> int:
    """Return the number of rows behind the header, bad ones among them.

    Raises:
        DataError: as `read_csv`.
    """
    return sum(1 for _ in _records(path))


Fault = tuple[str, str] | None


def _records(path: Path) -> Iterator[tuple[list[str], list[str], Origin, Fault]]:
    """Yield the cells of each row with the column names, the place, and what is wrong with its bytes or quotes."""
    separator = "\t" if suffix_of(path) == ".tsv" else ","
    # the reader's own limit of 128 KiB a cell is one for the whole process, and long answers pass it
    csv.field_size_limit(LONGEST_CELL)
    with (
        reading(path) as raw,
        io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        lines = _Lines(path, file)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        names: list[str] | None = None
        while True:
            origin = Origin(str(path), lines.number, lines.byte or _bom_size(path))
            lines.fault = None
            fault: Fault = None
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells, fault = [], _quote_fault(path, origin, error, lines.number - 1)
            if names is None:
                faulty = fault or lines.fault
                names = _header(path, cells, separator, faulty, lines.last) if cells or fault else None
            elif cells or fault:
                yield cells, names, origin, lines.fault or fault


def _bom_size(path: Path) -> int:
    with open_bytes(path) as file:
        return len(UTF8_BOM) if file.read(len(UTF8_BOM)) == UTF8_BOM else 0


def _quote_fault(path: Path, origin: Origin, error: csv.Error, last_line: int) -> Fault:
    if "end of data" in str(error) or "larger than field limit" in str(error):
        raise DataError(
            f"{path}: line {origin.line}: a quoted field is never closed",
            'close it with a quote; a quote inside a quoted field is written twice ("")',
        ) from error
    many = f": lines {origin.line} to {last_line} are read as one row" if last_line > origin.line else ""
    return "cells", f'a quote inside a quoted field is not written twice (""){many}'


def _header(path: Path, cells: list[str], separator: str, fault: Fault, line: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if names and names[0].lower().startswith("sep=") and not any(names[1:]):
        raise DataError(
            f"{path}: the first line is Excel's {describe(separator.join(names))}",
            f"remove it; separate with {NAMES[separator]}",
        )
    # quoted cells with another separator between them are a fault of quotes, and no cells
    alone = names[0] if len(names) == 1 else "" if names else line.strip()
    for other in NAMES:
        if other != separator and _is_cut_by(other, alone):
            raise DataError(
                f"{path}: one column named {describe(alone)}: the separator is {NAMES[other]}",
                "rename it to end in .tsv" if other == "\t" else f"separate with {NAMES[separator]}",
            )
    if fault is not None:
        raise DataError(f"{path}: the header: {fault[1]}", "mend the first line")
    for name, times in Counter(names).items():
        if name and times > 1:
            places = " and ".join(str(at) for at, other in enumerate(names, 1) if other == name)
            raise DataError(f"{path}: column {describe(name)} twice (cells {places})", "rename one of them")
    if not any(names):
        raise DataError(
            f"{path}: the first line names no column", "write the column names into the first line"
        )
    return names


def _is_cut_by(separator: str, line: str) -> bool:
    try:
        return any(len(cells) > 1 for cells in csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return False


def _row(cells: list[str], names: list[str], origin: Origin, fault: Fault) -> Record | BadRow:
    while len(cells) > len(names) and not cells[-1]:
        cells = cells[:-1]
    if fault is None and len(cells) != len(names):
        of = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
        fault = ("cells", f"{of}, the header has {len(names)}")
    if fault is None and not any(cells):
        fault = ("cells", "all cells are empty")
    if fault is None and len(names) > 1 and [cell.strip() for cell in cells] == names:
        fault = ("cells", "the header once more, as where tables were joined")
    if fault is not None:
        raw = "\n".join(cells).encode("utf-8", "surrogateescape")
        return BadRow(origin, fault[0], fault[1], sha1(raw))
    return Record({name: cell for name, cell in zip(names, cells, strict=True) if name}, origin)
