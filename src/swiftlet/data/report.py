"""What became of every row that was read, in counts that add up to the input, and in lines for the log. No torch.

A bad row is the user's to mend or to skip. A row that was left out for its length, for having nothing to learn once
it was cut, or for repeating another one is no bad row: it is counted, and said loudly.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from swiftlet.data.columns import THOUGHTS
from swiftlet.data.guesses import may_be_thought
from swiftlet.data.hints import NUM_NAMES
from swiftlet.data.names import flag, shown
from swiftlet.data.reasons import NOTES
from swiftlet.data.store import TokenStore, blocks

NUM_SHOWN = 20
NUM_OFFENDERS = 3
MOST_UNUSED = 100  # rows may have any names of columns
OVER_LENGTH, NO_LABEL_TOKENS, DUPLICATE_ROW = "over_length", "no_label_tokens", "duplicate_id"


class LeftOut(NamedTuple):
    """Why a row was not taken; `detail` holds no text of the row, `length` its tokens where there are too many."""

    path: str
    line: int
    byte: int
    reason: str
    detail: str
    sha1: str
    is_bad: bool = True
    length: int = 0

    @property
    def place(self) -> str:
        """Return file and line."""
        return f"{self.path}:{self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}: {self.detail}"

    def to_json(self) -> str:
        """Return the line of bad_rows.jsonl."""
        content = {
            "file": self.path,
            "line": self.line,
            "byte": self.byte,
            "reason": self.reason,
            "detail": self.detail,
            "sha1": self.sha1,
        }
        return json.dumps(content, ensure_ascii=False) + "\n"


@dataclass
class DatasetCount:
    """One dataset of the command line: every row read is taken, or counted under one reason.

    `unused` are the columns of rows that hold something and go into no sample.
    """

    name: str
    is_validation: bool = False
    num_rows: int = 0
    num_bad: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    offenders: dict[str, list[str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def num_taken(self) -> int:
        """Return the rows that became samples."""
        return self.num_rows - self.left_out.total()

    def leave_out(self, reason: str, place: str, *, is_bad: bool = False) -> None:
        """Count a row that was not taken."""
        self.left_out[reason] += 1
        self.num_bad += is_bad
        places = self.offenders.setdefault(reason, [])
        if len(places) < NUM_OFFENDERS:
            places.append(place)

    def lines(self) -> list[str]:
        """Return the summary line and, where rows were left out, where the first of each reason stand."""
        what = "validation dataset" if self.is_validation else "dataset"
        line = f"{what} {self.name}: {self.num_rows} rows, {self.num_taken} taken"
        if self.left_out:
            line += f", {self.left_out.total()} left out ({_counts(self.left_out)})"
        lines = [line]
        for reason, places in sorted(self.offenders.items()):
            lines.append(
                f"  {reason}: {', '.join(places)}{', ...' if self.left_out[reason] > len(places) else ''}"
            )
        lines += [
            f"  noted: {name} {count} ({NOTES[name]})"
            for name, count in sorted(self.notes.items(), key=_by_count)
        ]
        if self.unused:
            names = [shown(name) for name in self.unused[:NUM_NAMES]]
            more = ", ..." if len(self.unused) > NUM_NAMES else ""
            lines.append(f"  columns not used: {', '.join(names)}{more}")
            thoughts = [name for name in self.unused if may_be_thought(name) and name not in THOUGHTS]
            lines += [
                f"    where {shown(name)} holds thoughts before the answers, learn them with {flag(name, THOUGHTS[0])}"
                for name in thoughts[:1]
            ]
        return lines


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=_by_count))


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


class Lengths(NamedTuple):
    """Token lengths of a split."""

    mean: float
    std: float
    min: int
    max: int
    size: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}±{self.std:.2f}, min={self.min}, max={self.max}, size={self.size}"


def lengths_of(store: TokenStore) -> Lengths | None:
    """Return the token lengths of a split, None when it is empty."""
    size = len(store)
    if size == 0:
        return None
    total = square = largest = 0
    smallest = int(store.lengths[0])
    for block in blocks(size):
        part = store.lengths[block].astype(np.int64)
        total += int(part.sum())
        square += int((part * part).sum())
        smallest, largest = min(smallest, int(part.min())), max(largest, int(part.max()))
    mean = total / size
    return Lengths(mean, math.sqrt(max(0.0, square / size - mean * mean)), smallest, largest, size)


@dataclass
class DataReport:
    """What became of every row of a run.

    Attributes:
        first_bad: the first bad rows as "path:line: reason: detail".
        longest: (tokens, place) of the longest rows that were left out, the longest first.
        max_length: longest sample allowed [tokens]; 0 for no limit.
        num_repeated: rows that repeat another one, where they were looked for.
        repeated: the first of them, as "place repeats place".
        num_shared: rows for validation that are trained on too.
        shared: the first of them, and where it is trained on.
        columns: the names given to --columns that rows have.
    """

    datasets: list[DatasetCount] = field(default_factory=list)
    first_bad: list[str] = field(default_factory=list)
    longest: list[tuple[int, str]] = field(default_factory=list)
    max_length: int = 0
    num_repeated: int = 0
    repeated: list[str] = field(default_factory=list)
    num_shared: int = 0
    shared: str = ""
    columns: list[str] = field(default_factory=list)
    train: Lengths | None = None
    val: Lengths | None = None

    @property
    def num_rows(self) -> int:
        """Return the rows read."""
        return sum(dataset.num_rows for dataset in self.datasets)

    @property
    def num_bad(self) -> int:
        """Return the rows that cannot be trained on."""
        return sum(dataset.num_bad for dataset in self.datasets)

    def left_out(self) -> Counter[str]:
        """Return the rows left out, a count a reason."""
        total: Counter[str] = Counter()
        for dataset in self.datasets:
            total.update(dataset.left_out)
        return total

    def leave_out(self, dataset: int, row: LeftOut) -> None:
        """Count a row of a dataset that was not taken, and remember it where it is among the first or the longest."""
        self.datasets[dataset].leave_out(row.reason, row.place, is_bad=row.is_bad)
        if row.is_bad and len(self.first_bad) < NUM_SHOWN:
            self.first_bad.append(str(row))
        if row.length:
            longest = [*self.longest, (row.length, row.place)]
            self.longest = sorted(longest, key=lambda item: -item[0])[:NUM_OFFENDERS]

    def lines(self) -> list[str]:
        """Return the lines of the log: one a dataset, and the token lengths of each split."""
        lines = [line for dataset in self.datasets for line in dataset.lines()]
        if self.train:
            lines.append(f"Dataset Token Length: {self.train}")
        if self.val:
            lines.append(f"Dataset Token Length: {self.val} (validation)")
        return lines

    def warnings(self) -> list[str]:
        """Return what the user should not miss: rows left out for their length or for having nothing to learn."""
        counts = self.left_out()
        found = []
        if counts[OVER_LENGTH]:
            share = 100 * counts[OVER_LENGTH] / self.num_rows
            longest, place = self.longest[0]
            found.append(
                f"{counts[OVER_LENGTH]} of {self.num_rows} rows ({share:.1f} %) are longer than "
                f"{self.max_length} tokens and were left out; the longest has {longest} ({place}); "
                f"{how_to_keep(longest)}"
            )
        if self.num_repeated:
            found.append(
                f"{self.num_repeated} of {self.num_rows} rows repeat another one, such as {self.repeated[0]}"
            )
        if self.num_shared and self.val:
            is_given = any(dataset.is_validation for dataset in self.datasets)
            remedy = (
                "give other rows with --val_dataset"
                if is_given
                else "--check_dataset_strategy discard leaves repeated rows out"
            )
            found.append(
                f"{self.num_shared} of {self.val.size} validation rows are trained on too, such as {self.shared}: "
                f"eval_loss is too low for it; {remedy}"
            )
        if counts[NO_LABEL_TOKENS]:
            found.append(f"{counts[NO_LABEL_TOKENS]} rows have no token to train on and were left out")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**vars(self), "datasets": [vars(dataset) for dataset in self.datasets]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> DataReport:
        """Return the report that `to_dict` wrote."""
        datasets = [
            DatasetCount(**{**one, "left_out": Counter(one["left_out"]), "notes": Counter(one["notes"])})
            for one in content["datasets"]
        ]
        splits = {name: Lengths(*content[name]) if content[name] else None for name in ("train", "val")}
        longest = [(int(length), str(place)) for length, place in content["longest"]]
        return cls(**{**content, **splits, "datasets": datasets, "longest": longest})


def how_to_keep(longest: int) -> str:
    """Return what to type so that rows of up to `longest` tokens are kept."""
    return f"--max_length {longest} keeps all, --truncation_strategy truncation_left cuts their beginning"
