"""Run the catalogue of faults and say how often each case was tried and how it ended.

    python tools/faults.py            the table, on the screen
    python tools/faults.py --write    and into docs/reliability.md
    python tools/faults.py --results report.xml    of a run made before, by pytest --junit-xml

Further words go to pytest, such as `-k f06`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
NAME = re.compile(r"test_(?:(f\d\d)_)?(\w+)")


def run(words: list[str], report: Path) -> None:
    """Run the tests, the slow ones too; failures are in the report."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/faults",
        "-m",
        "slow or not slow",
        "--junit-xml",
        str(report),
    ]
    subprocess.run([*command, *words], cwd=ROOT, check=False)


def table(report: Path) -> list[str]:
    """Return the lines of the table, a row a test."""
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for case in ElementTree.parse(report).iter("testcase"):
        match = NAME.match(case.get("name", ""))
        if match is None:
            continue
        row = counts[(match[1] or "-").upper(), match[2].split("[")[0].replace("_", " ")]
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        row[outcome] += 1
    lines = ["| id | case | tried | as expected | skipped |", "|---|---|---|---|---|"]
    for (number, text), row in sorted(counts.items()):
        tried = row["passed"] + row["failed"]
        lines.append(f"| {number} | {text} | {tried} | {row['passed']} | {row['skipped']} |")
    return lines


def write(lines: list[str]) -> None:
    """Put the table between the marks of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = "\n".join([BEGIN, "", f"Run on {date.today()} with `make faults`.", "", *lines, "", END])
    PAGE.write_text(before + text + after, encoding="utf-8")


def main() -> int:
    """Run the program; return 1 when a case did not end as expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    parser.add_argument("--results", type=Path, help="the report of a run made before")
    options, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        report = options.results or Path(folder) / "report.xml"
        if options.results is None:
            run(words, report)
        lines = table(report)
    print("\n".join(lines))
    if options.write:
        write(lines)
    return int(any(line.split("|")[3].strip() != line.split("|")[4].strip() for line in lines[2:]))


if __name__ == "__main__":
    sys.exit(main())
