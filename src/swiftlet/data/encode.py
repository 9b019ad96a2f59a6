"""Rows -> token ids and labels in a draft of a token store, by several processes. No torch.

Rows travel in chunks whose bounds follow from the rows alone, and are written in the order in which they were read,
so the store does not depend on the number of processes. A journal says how much of the draft is good: after an
interruption the same rows go on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from swiftlet.data.formats import row_sha1, to_sample
from swiftlet.data.mapping import unused_columns, used_columns
from swiftlet.data.rendering import TemplateError
from swiftlet.data.report import (
    NO_LABEL_TOKENS,
    OVER_LENGTH,
    LeftOut,
)
from swiftlet.data.rows import IGNORE_INDEX, BadRow, Origin, Record, Sample
from swiftlet.data.store import KEPT, LEFT_OUT, ROW, pack, tokens_hash
from swiftlet.data.template import Template

CHUNK_ROWS = 128
CHUNK_BYTES = 4_000_000
TRUNCATED = "truncated"


class Chunk(NamedTuple):
    """Neighbouring rows of one dataset; `dataset` is its number on the command line."""

    dataset: int
    records: list[Record | BadRow]


@dataclass
class EncodedChunk:
    """What became of a chunk: offsets of `rows` count from its own first token, `file` is a number in `files`,
    `columns` are the names given to --columns that its rows have, and `unused` the columns that went into no sample.
    """

    dataset: int
    num_records: int
    rows: np.ndarray
    tokens: np.ndarray
    files: list[str]
    left_out: list[LeftOut]
    notes: Counter[str]
    columns: list[str]
    unused: set[str]


class _Tokens(NamedTuple):
    input_ids: np.ndarray
    labels: np.ndarray
    num_labels: int
    notes: tuple[str, ...]


class _Rows:
    """Collects the rows of a chunk, to make columns of: setting fields of an array row by row takes longer."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.left_out: list[LeftOut] = []
        self.notes: Counter[str] = Counter()
        self._places: list[tuple[int, int]] = []
        self._contents: list[bytes] = []
        self._kept: list[int] = []
        self._tokens: list[_Tokens] = []

    def leave_out(self, row: BadRow) -> None:
        """Count a row that could not be read or whose shape was not accepted."""
        self.left_out.append(LeftOut(*row.origin, *row[1:]))

    def add(self, origin: Origin, content: bytes, result: _Tokens | LeftOut) -> None:
        """Add a row whose shape was accepted."""
        if isinstance(result, LeftOut):
            self.left_out.append(result)
        else:
            self._kept.append(len(self._places))
            self._tokens.append(result)
            self.notes.update(result.notes)
        self._places.append((origin.line, self.files.setdefault(origin.path, len(self.files))))
        self._contents.append(content)

    def arrays(self, dataset: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows as `ROW` and the packed tokens of the kept ones."""
        none = np.empty(0, np.int32)
        tokens = pack(
            np.concatenate([none, *(one.input_ids for one in self._tokens)]),
            np.concatenate([none, *(one.labels for one in self._tokens)]),
        )
        rows = np.zeros(len(self._places), ROW)
        if not self._places:
            return rows, tokens
        rows["dataset"] = dataset
        rows["line"], rows["file"] = np.array(self._places, np.int64).T
        rows["content"] = np.frombuffer(b"".join(self._contents), "<u8").reshape(-1, 2)
        rows["status"] = LEFT_OUT
        rows["status"][self._kept] = KEPT
        rows["length"][self._kept] = [len(one.input_ids) for one in self._tokens]
        rows["num_labels"][self._kept] = [one.num_labels for one in self._tokens]
        ends = np.cumsum(rows["length"], dtype=np.int64)
        rows["offset"] = ends - rows["length"]
        starts = rows["offset"][self._kept].tolist()
        digests = [
            tokens_hash(tokens[start : start + len(one.input_ids)])
            for start, one in zip(starts, self._tokens, strict=True)
        ]
        rows["tokens"][self._kept] = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        return rows, tokens


def cut_chunks(dataset: int, records: Iterable[Record | BadRow]) -> Iterator[Chunk]:
    """Yield the rows of a dataset in chunks of at most CHUNK_ROWS rows and about CHUNK_BYTES of a file."""
    chunk: list[Record | BadRow] = []
    for record in records:
        if chunk and (len(chunk) == CHUNK_ROWS or _is_far(chunk[0].origin, record.origin)):
            yield Chunk(dataset, chunk)
            chunk = []
        chunk.append(record)
    if chunk:
        yield Chunk(dataset, chunk)


def _is_far(first: Origin, here: Origin) -> bool:
    return first.path == here.path and abs(here.byte - first.byte) > CHUNK_BYTES


def content_hash(sample: Sample) -> bytes:
    """Return 16 bytes that follow from the conversation, and not from where it stands."""
    text = json.dumps([sample.messages, sample.tools, sample.text], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Encoder:
    """Makes chunks of rows into tokens; goes to other processes, so it holds plain data and a template.

    Args:
        columns: other names of columns, theirs to ours.
        max_length: longest sample [tokens]; 0 for no limit.
        truncation: delete, or truncation_left.
    """

    template: Template
    columns: Mapping[str, str]
    max_length: int
    truncation: str

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """Return what becomes of the rows of a chunk."""
        rows = _Rows()
        used: set[str] = set()
        unused: set[str] = set()
        for record in chunk.records:
            if isinstance(record, BadRow):
                rows.leave_out(record)
                continue
            if len(used) < len(self.columns):
                used |= used_columns(record.row, self.columns)
            sample = to_sample(record, self.columns)
            if isinstance(sample, BadRow):
                rows.leave_out(sample)
            else:
                unused |= unused_columns(record.row, self.columns, sample.columns)
                rows.add(sample.origin, content_hash(sample), self._encode(sample, record))
        array, tokens = rows.arrays(chunk.dataset)
        files, columns = list(rows.files), sorted(used)
        return EncodedChunk(
            chunk.dataset,
            len(chunk.records),
            array,
            tokens,
            files,
            rows.left_out,
            rows.notes,
            columns,
            unused,
        )

    def _encode(self, sample: Sample, record: Record) -> _Tokens | LeftOut:
        try:
            ids, labels, notes = self.template.encode_arrays(sample)
        except TemplateError as error:
            return _leave_out(sample, record, error.reason, error.message)
        num_tokens = len(ids)
        is_long = 0 < self.max_length < num_tokens
        if is_long and self.truncation == "delete":
            detail = f"{num_tokens} tokens, longer than {self.max_length}"
            return _leave_out(sample, record, OVER_LENGTH, detail, is_bad=False)._replace(length=num_tokens)
        if is_long:
            ids, labels = self._cut(ids, labels)
            notes = (*notes, TRUNCATED)
        if len(labels):
            labels[0] = IGNORE_INDEX  # nothing stands before it from which it could be foretold
        num_labels = int(np.count_nonzero(labels != IGNORE_INDEX))
        if num_labels == 0:
            where = f"the last {self.max_length} of its {num_tokens}" if is_long else f"its {num_tokens}"
            detail = f"none of {where} tokens is trained on"
            return _leave_out(sample, record, NO_LABEL_TOKENS, detail, is_bad=not is_long)
        return _Tokens(ids, labels, num_labels, (*sample.notes, *notes))

    def _cut(self, ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keep the last tokens, and the first one too where it is the mark of a beginning."""
        bos = self.template.tokenizer.bos_id
        ids_cut = ids[-self.max_length :].copy()
        if bos is not None and ids[0] == bos:
            ids_cut[0] = bos
        return ids_cut, labels[-self.max_length :].copy()


def _leave_out(sample: Sample, record: Record, reason: str, detail: str, *, is_bad: bool = True) -> LeftOut:
    return LeftOut(*sample.origin, reason, detail, row_sha1(record.row), is_bad)
