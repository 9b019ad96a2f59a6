"""Run the catalogue of faults and say how often each case was tried and how it ended.

    python tools/faults.py            every case, then the table
    python tools/faults.py --write    and put it into docs/reliability.md and docs/reliability_CN.md
    python tools/faults.py --missing  only cases that are not on record yet, or failed
    python tools/faults.py --no_run   only the table, of what is on record

Further words go to pytest, such as `-k f06`. Each result is added to a record as soon as it is there, so a run that
is cut off loses nothing, and the catalogue can be run in parts; of a case that was run again the last result counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "output" / "faults.jsonl"
VARIABLE = "FAULTS_RECORD"  # read by tests/faults/conftest.py
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
NAME = re.compile(r"::test_(?:([fs]\d\d)_)?(\w+)")
PAGES = {
    "reliability.md": (
        "{tried} cases, {passed} ended as expected; the last on {date}, with `make faults`.",
        "| id | case | tried | as expected | skipped |",
    ),
    "reliability_CN.md": (
        "共试 {tried} 例，{passed} 例符合预期；最后一例于 {date}，命令 `make faults`。",
        "| 编号 | 用例（测试名） | 次数 | 符合预期 | 跳过 |",
    ),
}


def run(words: list[str], record: Path) -> None:
    """Run the tests, the slow ones too; results are in the record."""
    record.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/faults", "-m", "slow or not slow", "--no-cov", "-q"]
    environ = {**os.environ, VARIABLE: str(record)}
    subprocess.run([*command, *words], cwd=ROOT, check=False, env=environ)


def read(record: Path) -> list[dict[str, str]]:
    """Return the last result of each case."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return list({entry["case"]: entry for entry in map(json.loads, lines)}.values())


def rows(results: list[dict[str, str]]) -> list[str]:
    """Return the lines of the table, a row a test."""
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for result in results:
        match = NAME.search(result["case"])
        assert match is not None, result
        counts[(match[1] or "-").upper(), match[2].replace("_", " ")][result["outcome"]] += 1
    return [
        f"| {number} | {text} | {row['passed'] + row['failed']} | {row['passed']} | {row['skipped']} |"
        for (number, text), row in sorted(counts.items())
    ]


def section(results: list[dict[str, str]], page: str) -> str:
    """Return what stands between the marks of a page."""
    summary, header = PAGES[page]
    outcomes = [result["outcome"] for result in results]
    passed = outcomes.count("passed")
    said = summary.format(
        tried=passed + outcomes.count("failed"),
        passed=passed,
        date=max((result["date"] for result in results), default="never"),
    )
    return "\n".join([said, "", header, "|---|---|---|---|---|", *rows(results)])


def write(results: list[dict[str, str]]) -> None:
    """Put the table between the marks of the pages."""
    for page in PAGES:
        path = ROOT / "docs" / page
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        path.write_text(f"{before}{BEGIN}\n\n{section(results, page)}\n\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Run the program; return 1 when a case did not end as expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs")
    parser.add_argument("--missing", action="store_true", help="leave out what has passed already")
    parser.add_argument("--no_run", action="store_true", help="only what is on record")
    parser.add_argument("--record", type=Path, default=RECORD, help="file of the results, a line each")
    options, words = parser.parse_known_args()
    if not options.no_run:
        done = (
            [r["case"] for r in read(options.record) if r["outcome"] == "passed"] if options.missing else []
        )
        run([*words, *(word for case in done for word in ("--deselect", case))], options.record.absolute())
    results = read(options.record)
    print(section(results, "reliability.md"))
    if options.write:
        write(results)
    failed = [result["case"] for result in results if result["outcome"] == "failed"]
    print("\n".join(["", "not as expected:", *failed]) if failed else "")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
