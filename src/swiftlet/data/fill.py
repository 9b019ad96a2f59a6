"""Fills a draft of a token store with the rows of all datasets in their order, and shows that it lives. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, islice

from swiftlet import heartbeat, log
from swiftlet.data.draft import Draft
from swiftlet.data.encode import Chunk, Encoder, cut_chunks
from swiftlet.data.report import NUM_SHOWN
from swiftlet.data.sources import read_records
from swiftlet.data.spec import DatasetSpec
from swiftlet.data.workers import map_in_order
from swiftlet.device.processors import usable_processors

FEW_ROWS = 500
SAY_EVERY_S = 10.0
BEAT_EVERY_S = 1.0


class Pulse:
    """Beats once a second and says every ten how far it is."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._started = self._said = time.monotonic()
        self._beaten = 0.0

    def __call__(self) -> None:
        """Beat and speak where it is time to."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_EVERY_S:
            heartbeat.beat("tokenise", self.num_rows)
            self._beaten = now
        if now - self._said >= SAY_EVERY_S:
            log.info(f"tokenising: {self.num_rows} rows, {self.num_rows / (now - self._started):.0f} rows/s")
            self._said = now


def read_chunks(specs: Sequence[DatasetSpec], seed: int) -> Iterator[Chunk]:
    """Yield the rows of all datasets in chunks, the datasets one after another."""
    for number, spec in enumerate(specs):
        yield from cut_chunks(number, read_records(spec, seed=seed))


def fill(
    draft: Draft,
    specs: Sequence[DatasetSpec],
    encoder: Encoder,
    *,
    seed: int,
    num_proc: int | None,
    stops: bool,
) -> bool:
    """Tokenise the rows that the draft does not hold yet, and save it.

    Args:
        num_proc: processes; one a core when None. Few rows are made in this process: starting others takes longer.
        stops: give up once as many bad rows are known as are shown to the user.

    Returns: whether all rows are in the draft.
    """
    if stops and draft.report.num_bad >= NUM_SHOWN:
        return False
    pulse = Pulse()
    chunks = islice(read_chunks(specs, seed), draft.num_chunks, None)
    head: list[Chunk] = []
    while sum(len(chunk.records) for chunk in head) < FEW_ROWS and (chunk := next(chunks, None)):
        head.append(chunk)
    is_small = sum(len(chunk.records) for chunk in head) < FEW_ROWS
    processes = 1 if is_small else num_proc or usable_processors()
    if processes > 1:  # what the first row of all builds, every process would build again
        encoder(Chunk(head[0].dataset, head[0].records[:1]))
    is_whole = True
    with closing(map_in_order(encoder, chain(head, chunks), processes, pulse)) as results:
        for result in results:
            draft.append(result)
            pulse.num_rows += result.num_records
            pulse()
            if stops and draft.report.num_bad >= NUM_SHOWN:
                is_whole = False
                break
    draft.save()
    return is_whole
