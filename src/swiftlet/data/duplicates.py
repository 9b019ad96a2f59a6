"""Which rows of a store repeat an earlier one, found in memory that does not grow with their number. No torch.

Rows with equal hashes meet in one of many nameless files, small enough each to be sorted in memory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from swiftlet.data.report import DUPLICATE_ROW, NUM_SHOWN, DataReport
from swiftlet.data.store import DUPLICATE, FILES, KEPT, ROW, ROWS, Entries, origin_of, row_blocks

PART_ROWS, MOST_PARTS = 2**17, 256
_KEY = np.dtype([("content", "<u8", (2,)), ("number", "<i8"), ("status", "<i4")])


class Repeats(NamedTuple):
    """The kept rows whose conversation occurred before: how many, and (row, row it repeats) of the first ones."""

    total: int
    first: list[tuple[int, int]]


def mark_duplicates(folder: Path, *, num_dataset_rows: int, is_discarded: bool) -> Repeats:
    """Find the kept rows of --dataset whose conversation occurred before.

    `is_discarded` marks every repeated row in the store, kept or not, so that the split can be found from text.
    """
    total, first = 0, np.empty((0, 2), np.int64)
    with (folder / ROWS).open("r+b") as rows:
        for keys in _parts(folder, num_dataset_rows):
            pairs, status = _repeats(keys)
            kept = pairs[status % DUPLICATE == KEPT]
            total += len(kept)
            first = np.concatenate([first, kept])
            first = first[np.argsort(first[:, 0])][:NUM_SHOWN]
            if is_discarded:
                _mark(rows, pairs[:, 0], status)
    return Repeats(total, [(int(later), int(earlier)) for later, earlier in first])


def _parts(folder: Path, num_rows: int) -> Iterator[np.ndarray]:
    """Yield the keys of all rows in parts: those of equal conversations in one, the numbers of a part ascending."""
    num_parts = min(MOST_PARTS, -(-num_rows // PART_ROWS))
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(num_parts)]
        for start, rows in row_blocks(folder, 0, num_rows):
            keys = np.empty(len(rows), _KEY)
            keys["content"], keys["status"] = rows["content"], rows["status"]
            keys["number"] = np.arange(start, start + len(rows))
            part = keys["content"][:, 0] % np.uint64(num_parts)
            for number, file in enumerate(files):
                file.write(keys[part == number].tobytes())
        for file in files:
            file.seek(0)
            yield np.frombuffer(file.read(), _KEY)


def _repeats(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (row number, number of the row it repeats), one pair a line, and the status of each such row."""
    ordered = keys[np.lexsort((keys["content"][:, 1], keys["content"][:, 0]))]
    content, numbers = ordered["content"], ordered["number"]
    is_repeated = np.zeros(len(ordered), bool)
    is_repeated[1:] = (content[1:] == content[:-1]).all(axis=1)
    starts = np.maximum.accumulate(np.where(is_repeated, 0, np.arange(len(ordered))))
    pairs = np.stack([numbers[is_repeated], numbers[starts[is_repeated]]], axis=1)
    return pairs, ordered["status"][is_repeated]


def _mark(rows: IO[bytes], numbers: np.ndarray, status: np.ndarray) -> None:
    fields: Any = ROW.fields
    offsets = numbers * ROW.itemsize + fields["status"][1]
    marked = (status | DUPLICATE).astype("<i4")
    for offset, value in zip(offsets.tolist(), marked, strict=True):
        os.pwrite(rows.fileno(), value.tobytes(), offset)


def count_duplicates(report: DataReport, folder: Path, repeats: Repeats, *, is_discarded: bool) -> None:
    """Count the repeated rows that `mark_duplicates` found, as left out where they are discarded."""
    files = json.loads((folder / FILES).read_text(encoding="utf-8"))
    entries = Entries(folder / ROWS, ROW)

    def place_of(number: int) -> str:
        return origin_of(files, entries.read(number)[0])

    report.num_repeated = repeats.total
    report.repeated = [f"{place_of(later)} repeats {place_of(first)}" for later, first in repeats.first]
    if is_discarded:
        for _, rows in row_blocks(folder):
            for row in rows[rows["status"] == KEPT + DUPLICATE]:
                report.datasets[int(row["dataset"])].leave_out(DUPLICATE_ROW, origin_of(files, row))


def count_shared(report: DataReport, folder: Path, held_out: str) -> None:
    """Count the rows for validation whose conversation is trained on too: a low loss on them says nothing.

    Args:
        held_out: the file with the numbers of the rows for validation; all others that are kept are trained on.
    """
    held = np.sort(np.fromfile(folder / held_out, "<i8"))
    if not len(held):
        return
    contents = [rows["content"][np.isin(numbers, held)] for numbers, rows in _numbered(folder)]
    words = np.concatenate([content[:, 0] for content in contents])
    trained: dict[bytes, int] = {}
    for numbers, rows in _numbered(folder):
        is_trained = (rows["status"] == KEPT) & ~np.isin(numbers, held)
        for at in np.flatnonzero(is_trained & np.isin(rows["content"][:, 0], words)):
            trained.setdefault(rows["content"][at].tobytes(), int(numbers[at]))
    keys = (content.tobytes() for block in contents for content in block)
    shared = [(int(number), trained[key]) for number, key in zip(held, keys, strict=True) if key in trained]
    report.num_shared = len(shared)
    if shared:
        files, entries = json.loads((folder / FILES).read_text(encoding="utf-8")), Entries(folder / ROWS, ROW)
        own, other = (origin_of(files, entries.read(number)[0]) for number in shared[0])
        report.shared = f"{own} (trained on as {other})"


def _numbered(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start, rows in row_blocks(folder):
        yield np.arange(start, start + len(rows)), rows
