"""Which rows are held out for validation: it follows from their number, the share and the seed alone. No torch.

The rows counted are those whose shape was accepted, before they are made into tokens, so that inference finds the
same rows again from the text alone. Only `random.Random.random` is used: Python promises that its sequence stays the
same in all versions, and numpy does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from swiftlet.data.store import DUPLICATE, KEPT, ROW, ROWS, blocks, map_array


def num_held_out(num_rows: int, ratio: float) -> int:
    """Return how many rows are held out: at least 1 where a share was asked for, and never the last one."""
    if ratio == 0 or num_rows < 2:
        return 0
    return min(max(1, round(num_rows * ratio)), num_rows - 1)


def hold_out(num_rows: int, ratio: float, seed: int) -> np.ndarray:
    """Return the numbers of the held-out rows, in random order: the first draws of a Fisher-Yates shuffle."""
    draw = random.Random(seed).random
    moved: dict[int, int] = {}
    picks = np.empty(num_held_out(num_rows, ratio), np.int64)
    for position in range(len(picks)):
        other = position + int(draw() * (num_rows - position))
        picks[position] = moved.get(other, other)
        moved[other] = moved.get(position, position)
    return picks


class Split:
    """The rows of a store in two parts, without a list of all of them in memory.

    Args:
        num_rows: rows of the store, the first ones of which belong to --dataset, the others to --val_dataset.
        num_dataset_rows: how many belong to --dataset.
    """

    def __init__(self, folder: Path, *, num_dataset_rows: int, ratio: float, seed: int) -> None:
        self._rows = map_array(folder / ROWS, ROW)
        self.num_dataset_rows = num_dataset_rows
        status = self._rows["status"]
        num_unique = sum(int((status[block] < DUPLICATE).sum()) for block in blocks(num_dataset_rows))
        self._picks = hold_out(num_unique, ratio, seed)
        self._held = np.empty(len(self._picks), np.int64)

    def train(self) -> Iterator[np.ndarray]:
        """Yield the row numbers to train on, ascending, and find those of the held-out rows on the way."""
        order = np.argsort(self._picks)
        ascending = self._picks[order]
        num_before = 0
        for block in blocks(self.num_dataset_rows):
            rows = np.arange(block.start, block.stop)
            unique = rows[self._rows["status"][block] < DUPLICATE]
            first, last = np.searchsorted(ascending, [num_before, num_before + len(unique)])
            here = ascending[first:last] - num_before
            self._held[order[first:last]] = unique[here]
            num_before += len(unique)
            yield np.delete(unique, here)

    def held_out(self) -> Iterator[np.ndarray]:
        """Yield the row numbers of the held-out rows, in random order; call `train` first."""
        for block in blocks(len(self._held)):
            yield self._held[block]

    def validation(self) -> Iterator[np.ndarray]:
        """Yield the row numbers of --val_dataset."""
        for block in blocks(len(self._rows) - self.num_dataset_rows):
            yield np.arange(block.start, block.stop) + self.num_dataset_rows


def mark_duplicates(folder: Path, *, num_dataset_rows: int, is_discarded: bool) -> np.ndarray:
    """Find the kept rows of --dataset whose conversation occurred before; takes 24 bytes of memory a row.

    `is_discarded` marks every repeated row in the store, kept or not, so that the split can be found from text.

    Returns: row number and number of the row it repeats, one pair a line, ascending.
    """
    if num_dataset_rows == 0:
        return np.empty((0, 2), np.int64)
    rows = np.memmap(folder / ROWS, dtype=ROW, mode="r+")
    content = rows["content"][:num_dataset_rows]
    order = np.lexsort((content[:, 1], content[:, 0]))
    ordered = content[order]
    is_repeated = (ordered[1:] == ordered[:-1]).all(axis=1)
    starts = np.flatnonzero(np.concatenate(([True], ~is_repeated)))
    group = np.searchsorted(starts, np.flatnonzero(is_repeated) + 1, side="right") - 1
    pairs = np.stack([order[1:][is_repeated], order[starts[group]]], axis=1)
    pairs = pairs[np.argsort(pairs[:, 0])]
    kept = pairs[rows["status"][pairs[:, 0]] % DUPLICATE == KEPT]
    if is_discarded:
        rows["status"][pairs[:, 0]] |= DUPLICATE
        rows.flush()
    return kept
