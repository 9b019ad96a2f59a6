"""Read every file of a folder with an answer key (MANIFEST.jsonl) and print where the outcome differs from the key.

    python tools/check_data_cases.py FOLDER [FOLDER ...] [--all]

Two kinds of key are known. Data sets: `rows`, `strict` (rows taken), `rejected`, `file_error`, and `with_columns`
for a second reading with `--columns`. Broken files: `outcome` (error, accept, ambiguous), `rows_good`, `rows_bad`. An
error is either a stop with a message or exactly `rows_bad` bad rows. Ambiguous is any outcome that is not silent.
Exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet.data.formats import to_sample
from swiftlet.data.rows import BadRow
from swiftlet.data.sources import count_records, read_records
from swiftlet.data.spec import parse_spec
from swiftlet.errors import DataError


class Outcome(NamedTuple):
    """What reading one file came to."""

    num_taken: int
    rejected: Counter[str]
    notes: Counter[str]
    first: str
    stop: str | None

    @property
    def num_rejected(self) -> int:
        """Rows that were read and not taken."""
        return sum(self.rejected.values())

    def __str__(self) -> str:
        if self.stop is not None:
            return f"stops: {self.stop}"
        parts = [f"{self.num_taken} taken, {self.num_rejected} rejected"]
        parts += [f"{reason} {count}" for reason, count in sorted(self.rejected.items())]
        parts += [f"note {note} {count}" for note, count in sorted(self.notes.items())]
        return "; ".join(parts) + (f"; first: {self.first}" if self.first else "")


def read(path: Path, columns: Mapping[str, str]) -> Outcome:
    """Read one file to the end."""
    rejected: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    num_taken, first = 0, ""
    try:
        spec = parse_spec(str(path))
        total = count_records(spec)
        for row in read_records(spec):
            result = row if isinstance(row, BadRow) else to_sample(row, columns)
            if isinstance(result, BadRow):
                rejected[result.reason] += 1
                first = first or f"line {result.origin.line}: {result.detail}"
            else:
                num_taken += 1
                notes.update(result.notes)
    except DataError as error:
        return Outcome(
            num_taken, rejected, notes, first, str(error).replace(str(path), path.name).replace("\n", " ")
        )
    assert total == num_taken + sum(rejected.values()), f"{path}: counted {total}"
    return Outcome(num_taken, rejected, notes, first, None)


def differences(case: Mapping[str, Any], path: Path) -> tuple[list[str], Outcome]:
    """Return in what the outcome differs from the key, and the outcome."""
    outcome = read(path, {})
    if "outcome" in case:
        return _broken_file(case, outcome), outcome
    if "file_error" in case:
        return ([] if outcome.stop else [f"should stop: {case['file_error']}"]), outcome
    found = _counts(outcome, case["strict"], case["rejected"])
    if "with_columns" in case:
        again = case["with_columns"]
        mapped = read(path, again["columns"])
        found += [
            f"with --columns {text}"
            for text in _counts(mapped, again["strict"], case["rows"] - again["strict"])
        ]
    return found, outcome


def _counts(outcome: Outcome, num_taken: int, num_rejected: int) -> list[str]:
    if outcome.stop is not None:
        return ["should not stop"]
    is_equal = (outcome.num_taken, outcome.num_rejected) == (num_taken, num_rejected)
    return [] if is_equal else [f"should be {num_taken} taken, {num_rejected} rejected"]


def _broken_file(case: Mapping[str, Any], outcome: Outcome) -> list[str]:
    is_as_counted = (outcome.num_taken, outcome.num_rejected) == (case["rows_good"], case["rows_bad"])
    wanted = f"{case['outcome']}, {case['rows_good']} good, {case['rows_bad']} bad: {case['says']}"
    if case["outcome"] == "accept":
        is_right = outcome.stop is None and is_as_counted
    elif case["outcome"] == "error":
        is_right = outcome.stop is not None or (is_as_counted and outcome.num_rejected > 0)
    else:
        is_right = outcome.stop is not None or outcome.num_taken + outcome.num_rejected > 0
    return [] if is_right else [f"should be {wanted}"]


def check(folder: Path, *, is_verbose: bool) -> int:
    """Print one line a file and a summary, and return the number of files that differ."""
    cases = [
        json.loads(line)
        for line in (folder / "MANIFEST.jsonl").read_text(encoding="utf-8").splitlines()
        if line
    ]
    num_different = 0
    for case in cases:
        found, outcome = differences(case, folder / case["file"])
        num_different += bool(found)
        if found or is_verbose:
            print(f"{'DIFFERS' if found else 'as keyed'}  {case['file']}: {outcome}")
        for text in found:
            print(f"          {text}")
    print(f"{folder.name}: {len(cases) - num_different} of {len(cases)} files as keyed")
    return num_different


def main() -> int:
    """Check the folders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--all", action="store_true", help="print the files that are as keyed, too")
    args = parser.parse_args()
    return int(sum(check(folder, is_verbose=args.all) for folder in args.folders) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
