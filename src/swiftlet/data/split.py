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

from swiftlet.data.store import DUPLICATE, ROW, Numbered, row_blocks


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
        num_dataset_rows: how many, the first ones, belong to --dataset; the others belong to --val_dataset.
    """

    def __init__(self, folder: Path, *, num_dataset_rows: int, ratio: float, seed: int) -> None:
        self.folder = folder
        self.num_dataset_rows = num_dataset_rows
        num_unique = sum(len(numbers) for numbers, _ in self._unique())
        self._picks = hold_out(num_unique, ratio, seed)
        self._held = Numbered(np.empty(len(self._picks), np.int64), np.empty(len(self._picks), ROW))

    def _unique(self) -> Iterator[Numbered]:
        for start, rows in row_blocks(self.folder, 0, self.num_dataset_rows):
            is_unique = rows["status"] < DUPLICATE
            yield Numbered(np.flatnonzero(is_unique) + start, rows[is_unique])

    def train(self) -> Iterator[Numbered]:
        """Yield the rows to train on, ascending, and find the held-out rows on the way."""
        order = np.argsort(self._picks)
        ascending = self._picks[order]
        num_before = 0
        for numbers, rows in self._unique():
            first, last = np.searchsorted(ascending, [num_before, num_before + len(numbers)])
            here = ascending[first:last] - num_before
            self._held.numbers[order[first:last]] = numbers[here]
            self._held.rows[order[first:last]] = rows[here]
            num_before += len(numbers)
            yield Numbered(np.delete(numbers, here), np.delete(rows, here))

    def held_out(self) -> Iterator[Numbered]:
        """Yield the held-out rows, in random order; call `train` first."""
        yield self._held

    def validation(self) -> Iterator[Numbered]:
        """Yield the rows of --val_dataset."""
        for start, rows in row_blocks(self.folder, self.num_dataset_rows):
            yield Numbered(np.arange(start, start + len(rows)), rows)
