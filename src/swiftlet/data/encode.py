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

from swiftlet.data.formats import to_sample
from swiftlet.data.rendering import TemplateError
from swiftlet.data.report import (
    NO_LABEL_TOKENS,
    NUM_OFFENDERS,
    OVER_LENGTH,
    LeftOut,
)
from swiftlet.data.rows import IGNORE_INDEX, BadRow, Origin, Record, Sample
from swiftlet.data.store import KEPT, LEFT_OUT, ROW, pack
from swiftlet.data.template import Template

CHUNK_ROWS = 256
CHUNK_BYTES = 4_000_000
FEW_ROWS = 512
SAY_EVERY_S = 10.0
BEAT_EVERY_S = 1.0
TRUNCATED = "truncated"


class Chunk(NamedTuple):
    """Neighbouring rows of one dataset; `dataset` is its number on the command line."""

    dataset: int
    records: list[Record | BadRow]


class EncodedChunk(NamedTuple):
    """What became of a chunk: offsets of `rows` count from its own first token, `file` is a number in `files`."""

    dataset: int
    num_records: int
    rows: np.ndarray
    tokens: np.ndarray
    files: list[str]
    left_out: list[LeftOut]
    notes: Counter[str]
    longest: list[tuple[int, str]]


class _Tokens(NamedTuple):
    packed: np.ndarray
    length: int
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
        files: dict[str, int] = {}
        tokens: list[np.ndarray] = []
        left_out: list[LeftOut] = []
        notes: Counter[str] = Counter()
        longest: list[tuple[int, str]] = []
        num_rows = num_tokens = 0
        for record in chunk.records:
            sample = to_sample(record, self.columns) if isinstance(record, Record) else record
            if isinstance(sample, BadRow):
                left_out.append(LeftOut(*sample.origin, sample.reason, sample.detail, sample.sha1))
                continue
            row = rows[num_rows]
            num_rows += 1
            row["offset"], row["dataset"] = num_tokens, chunk.dataset
            row["line"], row["file"] = sample.origin.line, files.setdefault(sample.origin.path, len(files))
            row["content"] = np.frombuffer(content_hash(sample), "<u8")
            result = self._encode(sample, record)
            if isinstance(result, LeftOut):
                row["status"] = LEFT_OUT
                left_out.append(result)
                if result.reason == OVER_LENGTH:
                    longest.append((int(result.detail.split()[0]), str(sample.origin)))
                continue
            tokens.append(result.packed)
            num_tokens += result.length
            notes.update(result.notes)
            row["status"], row["length"], row["num_labels"] = KEPT, result.length, result.num_labels
            row["tokens"] = np.frombuffer(
                hashlib.blake2b(result.packed.tobytes(), digest_size=16).digest(), "<u8"
            )
        joined = np.concatenate(tokens) if tokens else np.empty(0, "<i4")
        longest.sort(key=lambda item: (-item[0], item[1]))
        return EncodedChunk(
            chunk.dataset,
            len(chunk.records),
            rows[:num_rows],
            joined,
            list(files),
            left_out,
            notes,
            longest[:NUM_OFFENDERS],
        )

    def _encode(self, sample: Sample, record: Record | BadRow) -> _Tokens | LeftOut:
        try:
            encoded, notes = self.template.encode_noted(sample)
        except TemplateError as error:
            return _leave_out(sample, record, error.reason, error.message)
        ids = np.asarray(encoded.input_ids, np.int32)
        labels = np.asarray(encoded.labels, np.int32)
        is_long = 0 < self.max_length < len(ids)
        if is_long and self.truncation == "delete":
            detail = f"{len(ids)} tokens, longer than {self.max_length}"
            return _leave_out(sample, record, OVER_LENGTH, detail, is_bad=False)
        if is_long:
            ids, labels = self._cut(ids, labels)
            notes = (*notes, TRUNCATED)
        if len(labels):
            labels[0] = IGNORE_INDEX  # nothing stands before it from which it could be foretold
        num_labels = int((labels != IGNORE_INDEX).sum())
        if num_labels == 0:
            where = (
                f"once its last {self.max_length} tokens are taken"
                if is_long
                else f"of its {len(ids)} tokens"
            )
            return _leave_out(
                sample, record, NO_LABEL_TOKENS, f"nothing to train on {where}", is_bad=not is_long
            )
        return _Tokens(pack(ids, labels), len(ids), num_labels, (*sample.notes, *notes))

    def _cut(self, ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keep the last tokens, and the first one too where it is the mark of a beginning."""
        bos = self.template.bos_token_id
        ids_cut, labels_cut = ids[-self.max_length :].copy(), labels[-self.max_length :].copy()
        if bos is not None and ids[0] == bos:
            ids_cut[0], labels_cut[0] = bos, IGNORE_INDEX
        return ids_cut, labels_cut


def _leave_out(
    sample: Sample, record: Record | BadRow, reason: str, detail: str, *, is_bad: bool = True
) -> LeftOut:
    row = record.row if isinstance(record, Record) else {}
    text = json.dumps(row, sort_keys=True, default=str)
    return LeftOut(*sample.origin, reason, detail, hashlib.sha1(text.encode()).hexdigest(), is_bad)
