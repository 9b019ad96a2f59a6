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
from swiftlet.data.rendering import TemplateError
from swiftlet.data.report import (
    NO_LABEL_TOKENS,
    OVER_LENGTH,
    LeftOut,
)
from swiftlet.data.rows import IGNORE_INDEX, BadRow, Origin, Record, Sample
from swiftlet.data.store import LEFT_OUT, ROW, pack
from swiftlet.data.template import Template

CHUNK_ROWS = 256
CHUNK_BYTES = 4_000_000
TRUNCATED = "truncated"


class Chunk(NamedTuple):
    """Neighbouring rows of one dataset; `dataset` is its number on the command line."""

    dataset: int
    records: list[Record | BadRow]


@dataclass
class EncodedChunk:
    """What became of a chunk: offsets of `rows` count from its own first token, `file` is a number in `files`."""

    dataset: int
    num_records: int
    rows: np.ndarray
    tokens: np.ndarray
    files: list[str]
    left_out: list[LeftOut]
    notes: Counter[str]


class _Tokens(NamedTuple):
    packed: np.ndarray
    num_labels: int
    notes: tuple[str, ...]


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
        rows = np.zeros(len(chunk.records), ROW)
        left_out: list[LeftOut] = []
        notes: Counter[str] = Counter()
        parts: list[np.ndarray] = []
        files: dict[str, int] = {}
        num_rows = num_tokens = 0
        for record in chunk.records:
            if isinstance(record, BadRow):
                left_out.append(LeftOut(*record.origin, *record[1:]))
                continue
            sample = to_sample(record, self.columns)
            if isinstance(sample, BadRow):
                left_out.append(LeftOut(*sample.origin, *sample[1:]))
                continue
            row = rows[num_rows]
            num_rows += 1
            row["dataset"], row["offset"], row["line"] = chunk.dataset, num_tokens, sample.origin.line
            row["file"] = files.setdefault(sample.origin.path, len(files))
            row["content"] = np.frombuffer(content_hash(sample), "<u8")
            result = self._encode(sample, record)
            if isinstance(result, LeftOut):
                row["status"], row["length"] = LEFT_OUT, 0
                left_out.append(result)
                continue
            parts.append(result.packed)
            num_tokens += len(result.packed)
            notes.update(result.notes)
            row["length"], row["num_labels"] = len(result.packed), result.num_labels
            digest = hashlib.blake2b(result.packed.tobytes(), digest_size=16)
            row["tokens"] = np.frombuffer(digest.digest(), "<u8")
        tokens = np.concatenate([np.empty(0, "<i4"), *parts])
        return EncodedChunk(
            chunk.dataset, len(chunk.records), rows[:num_rows], tokens, list(files), left_out, notes
        )

    def _encode(self, sample: Sample, record: Record) -> _Tokens | LeftOut:
        try:
            encoded, notes = self.template.encode_noted(sample)
        except TemplateError as error:
            return _leave_out(sample, record, error.reason, error.message)
        ids = np.asarray(encoded.input_ids, np.int32)
        labels = np.asarray(encoded.labels, np.int32)
        is_long = 0 < self.max_length < len(ids)
        if is_long and self.truncation == "delete":
            detail = f"{len(ids)} tokens, longer than {self.max_length}"
            return _leave_out(sample, record, OVER_LENGTH, detail, is_bad=False)._replace(length=len(ids))
        if is_long:
            ids, labels = self._cut(ids, labels)
            notes = (*notes, TRUNCATED)
        if len(labels):
            labels[0] = IGNORE_INDEX  # nothing stands before it from which it could be foretold
        num_labels = int((labels != IGNORE_INDEX).sum())
        if num_labels == 0:
            where = (
                f"the last {self.max_length} of its {len(encoded.input_ids)}"
                if is_long
                else f"its {len(ids)}"
            )
            detail = f"none of {where} tokens is trained on"
            return _leave_out(sample, record, NO_LABEL_TOKENS, detail, is_bad=not is_long)
        return _Tokens(pack(ids, labels), num_labels, (*sample.notes, *notes))

    def _cut(self, ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keep the last tokens, and the first one too where it is the mark of a beginning."""
        bos = self.template.bos_token_id
        ids_cut, labels_cut = ids[-self.max_length :].copy(), labels[-self.max_length :].copy()
        if bos is not None and ids[0] == bos:
            ids_cut[0], labels_cut[0] = bos, IGNORE_INDEX
        return ids_cut, labels_cut


def _leave_out(sample: Sample, record: Record, reason: str, detail: str, *, is_bad: bool = True) -> LeftOut:
    return LeftOut(*sample.origin, reason, detail, row_sha1(record.row), is_bad)
