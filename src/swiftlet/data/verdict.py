"""Whether rows that were read may be trained on: bad rows, lost rows and duplicates that stop a run. No torch."""

from __future__ import annotations

import shlex
from pathlib import Path

from swiftlet.config.args import DataArgs
from swiftlet.data.report import NUM_SHOWN, OVER_LENGTH, DataReport, how_to_keep
from swiftlet.errors import DataError

LARGEST_LOSS = 0.5
JSON = (".jsonl", ".ndjson", ".jsonlines", ".json")  # what jq reads as it is
AS_JSON = (
    "python3 -c 'import json, sys; from swiftlet.data.sources import read_records; from swiftlet.data.spec import "
    "parse_spec; [print(json.dumps(one.row, default=str)) for one in read_records(parse_spec(sys.argv[1]))]'"
)
SKIP = "mend them, or leave them out with --bad_rows skip"


def check_report(report: DataReport, args: DataArgs) -> None:
    """Check what became of the rows.

    Raises:
        DataError: there are no rows, none was taken, rows are bad, or too many were lost.
    """
    if report.num_rows == 0:
        names = ", ".join(dataset.name for dataset in report.datasets)
        raise DataError(f"no rows in {names}", "is it the right file? give another one with --dataset")
    check_bad(report, args)
    check_duplicates(report, args)
    lost = report.left_out()
    if lost.total() == report.num_rows:
        raise DataError(f"none of {report.num_rows} rows can be trained on: {_counts(lost)}", _how(report))
    if lost[OVER_LENGTH] > LARGEST_LOSS * report.num_rows:
        raise DataError(
            f"{lost[OVER_LENGTH]} of {report.num_rows} rows are longer than {report.max_length} tokens: "
            "more than half would be lost",
            how_to_keep(report.longest[0][0]),
        )


def _counts(lost: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(lost.items()))


def _how(report: DataReport) -> str:
    if report.left_out()[OVER_LENGTH]:
        return how_to_keep(report.longest[0][0])
    return report.first_bad[0] if report.first_bad else "give other rows with --dataset"


def check_bad(report: DataReport, args: DataArgs, *, is_whole: bool = True) -> None:
    """Check the bad rows against --bad_rows and --max_bad_fraction.

    Args:
        is_whole: all rows were read; false when the first bad ones were enough.

    Raises:
        DataError: rows are bad and may not be skipped, or more are bad than may be skipped.
    """
    num_bad = report.num_bad
    if num_bad == 0:
        return
    listed = "\n".join(_alike(report.first_bad))
    if args.bad_rows == "error":
        if not is_whole:
            title = f"rows cannot be trained on; the first {NUM_SHOWN} of them:"
        else:
            title = f"{num_bad} of {report.num_rows} rows cannot be trained on:"
        more = (
            f"\n  ... and {num_bad - len(report.first_bad)} more"
            if is_whole and num_bad > len(report.first_bad)
            else ""
        )
        named = "add the --columns that is named there, " if "--columns" in listed else ""
        raise DataError(f"{title}\n{listed}{more}", named + _by_jq(report.first_bad) + SKIP)
    share = num_bad / report.num_rows
    if share > args.max_bad_fraction:
        raise DataError(
            f"{num_bad} of {report.num_rows} rows cannot be trained on: {share:.2%}, more than --max_bad_fraction "
            f"{args.max_bad_fraction:g}; the first of them:\n{listed}",
            f"mend them, or allow more with --max_bad_fraction {_above(share):g}",
        )


def _by_jq(first_bad: list[str]) -> str:
    """Return what to do with a program for jq that a bad row names; '' where none does."""
    places = [line.partition(": ")[0] for line in first_bad if "jq -c" in line]
    if not places:
        return ""
    path = Path(places[0].rpartition(":")[0])
    if path.suffix.lower() in JSON:
        return "type the jq that is named there, "
    source, target = shlex.quote(str(path)), shlex.quote(f"{path.name}.jsonl")
    return f"write the rows as JSON with {AS_JSON} {source} > {target} and type the jq that is named there, "


def _alike(first_bad: list[str]) -> list[str]:
    """Return the lines for bad rows: each reason once, with the row where it is first seen, then the other rows."""
    places: dict[str, list[str]] = {}
    for line in first_bad:
        place, _, reason = line.partition(": ")
        places.setdefault(reason, []).append(place)
    lines = []
    for reason, (first, *others) in places.items():
        lines.append(f"  {first}: {reason}")
        if others:
            lines.append(f"    the same: {', '.join(others)}")
    return lines


def _above(share: float) -> float:
    """Return a round share that is not below this one."""
    return min(1.0, (int(share * 100) + 1) / 100)


def check_duplicates(report: DataReport, args: DataArgs) -> None:
    """Check repeated rows against --check_dataset_strategy.

    Raises:
        DataError: rows are repeated and --check_dataset_strategy is error.
    """
    if args.check_dataset_strategy == "error" and report.num_repeated:
        listed = "\n".join(f"  {line}" for line in report.repeated)
        raise DataError(
            f"{report.num_repeated} of {report.num_rows} rows repeat another one:\n{listed}",
            "leave them out with --check_dataset_strategy discard",
        )
