"""The rows that a run holds out, found again from their text alone, as inference needs them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from swiftlet.config.args import DataArgs
from swiftlet.data.encode import content_hash
from swiftlet.data.fill import read_chunks
from swiftlet.data.formats import to_sample
from swiftlet.data.questions import to_question
from swiftlet.data.report import DataReport, DatasetCount, LeftOut
from swiftlet.data.rows import BadRow, Record, Sample
from swiftlet.data.spec import DatasetSpec, parse_specs
from swiftlet.data.split import hold_out
from swiftlet.data.verdict import check_report


def read_split(args: DataArgs, *, may_ask: bool = False) -> tuple[int, list[Sample]]:
    """Return how many rows `prepare` trains on, and the held-out samples themselves, found from the text alone.

    Both count rows before they are made into tokens: some of them may be too long to train on. With --val_dataset all
    of its rows are returned, the others are not read, and the number is 0.

    Args:
        may_ask: the rows of --val_dataset are only asked: they may end with their question, and what is to be done
            about repeated ones is for them. A run searches those for repeated ones that it trains on.

    Raises:
        DataError: rows are bad and may not be skipped.
    """
    if args.val_dataset:
        every = args if may_ask else replace(args, check_dataset_strategy="none")
        read = to_question if may_ask else to_sample
        return 0, [sample for _, sample in _accepted(every, parse_specs(args.val_dataset), read)]
    specs = parse_specs(args.dataset)
    num_rows = sum(1 for _ in _accepted(args, specs))
    if args.dataset_test_ratio == 0:
        return num_rows, []
    places = {
        int(number): place
        for place, number in enumerate(hold_out(num_rows, args.dataset_test_ratio, args.dataset_seed))
    }
    found = {places[number]: sample for number, sample in _accepted(args, specs) if number in places}
    return num_rows - len(found), [found[place] for place in range(len(places))]


def _accepted(
    args: DataArgs, specs: Sequence[DatasetSpec], read: Callable[..., Sample | BadRow] = to_sample
) -> Iterator[tuple[int, Sample]]:
    """Yield (number, sample) of the rows that count for the split, and judge the bad ones at the end."""
    report = DataReport([DatasetCount(spec.text) for spec in specs])
    seen: set[bytes] = set()
    number = 0
    for chunk in read_chunks(specs, args.dataset_seed):
        for record in chunk.records:
            report.datasets[chunk.dataset].num_rows += 1
            sample = read(record, args.columns) if isinstance(record, Record) else record
            if isinstance(sample, BadRow):
                report.leave_out(chunk.dataset, LeftOut(*sample.origin, *sample[1:]))
                continue
            if args.check_dataset_strategy == "discard":
                content = content_hash(sample)
                if content in seen:
                    continue
                seen.add(content)
            yield number, sample
            number += 1
    check_report(report, args)
