"""Token ids and labels of many samples in files, read where they are asked for. No torch.

A folder holds every row that was read as one `ROW` of `rows.bin`, and the tokens of the kept ones one after another
in `tokens.bin`. A label is its own token or nothing, so one int32 holds both: a token t that is trained on is stored
as ~t (negative), another one as t. A split is a list of row numbers in files of its own: the same tokens serve both.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swiftlet.data.rows import IGNORE_INDEX
from swiftlet.errors import DataError

ROW = np.dtype(
    [
        ("offset", "<i8"),  # of the first token in tokens.bin, counted in tokens
        ("length", "<i4"),  # tokens; of a row that is too long, as many as it would have had
        ("num_labels", "<i4"),
        ("line", "<i8"),
        ("file", "<i4"),  # number in files.json
        ("dataset", "<i4"),
        ("status", "<i4"),
        ("content", "<u8", (2,)),  # hash of the conversation, to find duplicates
        ("tokens", "<u8", (2,)),  # hash of token ids and labels
    ]
)
KEPT, LEFT_OUT, DUPLICATE = 0, 1, 4  # DUPLICATE is added to the other
TOKENS, ROWS, FILES = "tokens.bin", "rows.bin", "files.json"
SEAL = "store.json"  # without it a folder is no store
BLOCK = 16384
REPAIR = "start again: a damaged token cache is made again"


class Pair(NamedTuple):
    """Token ids and labels of one sample, int32 and of equal length."""

    input_ids: np.ndarray
    labels: np.ndarray


def pack(input_ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ids and labels as one int32 array: ~t where token t is trained on, t where not.

    Raises:
        ValueError: a label is neither its token nor IGNORE_INDEX, or a token is negative.
    """
    is_trained = labels != IGNORE_INDEX
    if (input_ids < 0).any() or (labels[is_trained] != input_ids[is_trained]).any():
        raise ValueError("a label must be its own token or IGNORE_INDEX, and a token id not negative")
    return np.where(is_trained, ~input_ids, input_ids).astype("<i4")


def tokens_hash(packed: np.ndarray) -> bytes:
    """Return the hash of a sample's packed tokens that its row keeps."""
    return hashlib.blake2b(packed.data, digest_size=16).digest()


def unpack(packed: np.ndarray) -> Pair:
    """Return the ids and labels that `pack` joined."""
    is_trained = packed < 0
    input_ids = np.where(is_trained, ~packed, packed).astype(np.int32)
    return Pair(input_ids, np.where(is_trained, input_ids, np.int32(IGNORE_INDEX)).astype(np.int32))


def map_array(path: Path, dtype: Any) -> np.ndarray:
    """Return a file as a read-only array that takes no memory; an empty file is an empty array."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


class Entries:
    """The entries of a file, read where they are asked for.

    A page of a mapped file counts as memory of the process once it was looked at, with fifteen around it: a run that
    reads rows in random order would soon hold the whole file.
    """

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return os.fstat(self._descriptor).st_size // self.dtype.itemsize

    def read(self, start: int, count: int = 1) -> np.ndarray:
        """Return `count` entries from the one numbered `start`, counted from 0.

        Raises:
            DataError: the file ends before them.
        """
        size = self.dtype.itemsize
        found = os.pread(self._descriptor, count * size, start * size)
        if len(found) != count * size:
            raise DataError(
                f"{self.path} has {len(self)} entries and {start + count} were written: it was cut short",
                REPAIR,
            )
        return np.frombuffer(found, self.dtype)


def blocks(size: int) -> Iterator[slice]:
    """Yield slices that cover `size` entries, so that no whole column is ever in memory."""
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


class Numbered(NamedTuple):
    """Rows of a store with their numbers."""

    numbers: np.ndarray
    rows: np.ndarray


def row_blocks(folder: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows [start, stop) in blocks, each with the number of its first row.

    They are read, not mapped: each page of a mapped file that was looked at would count as memory of the process.
    """
    with (folder / ROWS).open("rb") as file:
        file.seek(start * ROW.itemsize)
        while stop is None or start < stop:
            rows = np.fromfile(file, ROW, BLOCK if stop is None else min(BLOCK, stop - start))
            if len(rows) == 0:
                return
            yield start, rows
            start += len(rows)


def origin_of(files: Sequence[str], row: np.void) -> str:
    """Return where a row stands in its file, such as train.jsonl:12."""
    return f"{files[int(row['file'])]}:{int(row['line'])}"


class TokenStore:
    """The samples of one split.

    Attributes:
        lengths: tokens of each sample.
        num_labels: tokens of each sample that are trained on.
        data_hash: follows from ids, labels and their order alone.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._rows = Entries(folder / ROWS, ROW)
        self._tokens = Entries(folder / TOKENS, "<i4")
        self._index = Entries(folder / f"{name}.index.bin", "<i8")
        self.lengths = map_array(folder / f"{name}.lengths.bin", "<i4")
        self.num_labels = map_array(folder / f"{name}.labels.bin", "<i4")
        self.data_hash = (folder / f"{name}.hash").read_text(encoding="utf-8")
        self._files: list[str] = json.loads((folder / FILES).read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int, /) -> Pair:
        row = self._row(index)
        packed = self._tokens.read(int(row["offset"]), int(row["length"]))
        if tokens_hash(packed) != row["tokens"].tobytes():
            (self.folder / SEAL).unlink(missing_ok=True)
            raise DataError(
                f"{self._tokens.path} is damaged: the tokens of {self.origin(index)} are not those that were written",
                REPAIR,
            )
        return unpack(packed)

    def origin(self, index: int) -> str:
        """Return where a sample stands in its file, such as train.jsonl:12."""
        return origin_of(self._files, self._row(index))

    def _row(self, index: int) -> np.void:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._rows.read(int(self._index.read(index)[0]))[0]


def write_split(folder: Path, name: str, parts: Iterable[Numbered]) -> None:
    """Write the files of one split: those of the rows that are kept, in that order."""
    digest = hashlib.sha256()
    with (
        (folder / f"{name}.index.bin").open("wb") as index,
        (folder / f"{name}.lengths.bin").open("wb") as lengths,
        (folder / f"{name}.labels.bin").open("wb") as labels,
    ):
        for numbers, rows in parts:
            is_kept = rows["status"] == KEPT
            kept = rows[is_kept]
            index.write(numbers[is_kept].astype("<i8").tobytes())
            lengths.write(kept["length"].tobytes())
            labels.write(kept["num_labels"].tobytes())
            digest.update(kept["tokens"].tobytes())
    (folder / f"{name}.hash").write_text(digest.hexdigest(), encoding="utf-8")
