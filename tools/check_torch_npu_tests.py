"""Run torch_npu's own public tests on simulated NPUs and print what passes, one row a file.

    NPUSIM=1 .venv-npu/bin/python tools/check_torch_npu_tests.py FOLDER [--files PART ...] [--jobs N] [--json FILE]

FOLDER holds test files of torch_npu and op-plugin, at any depth. Every file runs in a process of its own. They need
expecttest and einops, which `make npu-test` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree


@dataclass
class Result:
    """What happened to the tests of one file; `problems` has one line for each that did not pass."""

    file: str
    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def environment(state: str) -> dict[str, str]:
    """NPUSIM=1 with a machine of its own, as some files fill a card's memory."""
    return os.environ | {"NPUSIM": "1", "NPUSIM_STATE": state, "OMP_NUM_THREADS": "1"}


def first_line(text: str) -> str:
    """Return the beginning of the first line that is not blank."""
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "")


def read_report(report: Path, result: Result) -> None:
    """Counts of a JUnit file, and the first line of every failure."""
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            result.passed += 1
            continue
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        counter = {"failure": "failed", "error": "errors", "skipped": "skipped"}[outcome.tag]
        setattr(result, counter, getattr(result, counter) + 1)
        if outcome.tag != "skipped":
            result.problems.append(f"{name}: {first_line(outcome.get('message') or outcome.text or '')}")


def run_file(path: Path, folder: Path, timeout: float) -> Result:
    """Runs one file with pytest from its own folder, as its tests import their neighbours."""
    result = Result(str(path.relative_to(folder)))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        search = os.pathsep.join([str(path.parent), os.environ.get("PYTHONPATH", "")])
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(path.parent),
        ]
        command += [f"--junitxml={report}", str(path)]
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                env=environment(scratch) | {"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            result.errors, result.problems = 1, [f"not finished in {timeout:.0f} s"]
            return result
        if report.exists():
            read_report(report, result)
        else:
            result.errors = 1
            result.problems = [re.sub(r"\s+", " ", (done.stdout + done.stderr)[-300:])]
    result.seconds = time.monotonic() - begin
    return result


def print_row(result: Result, width: int) -> None:
    """At once, as a later file may take minutes."""
    numbers = (
        f"{result.passed:6} {result.failed:6} {result.errors:6} {result.skipped:7} {result.seconds:7.1f}"
    )
    print(f"{result.file:<{width}}  {numbers}", flush=True)
    for problem in result.problems:
        print(f"    {problem}", flush=True)


def print_sum(results: list[Result]) -> None:
    passed = sum(result.passed for result in results)
    ran = sum(result.passed + result.failed + result.errors for result in results)
    print(f"passed {passed} of {ran} that ran; skipped {sum(result.skipped for result in results)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=lambda text: Path(text).resolve(), help="where the test files lie")
    parser.add_argument("--files", nargs="*", default=[], help="only files whose path contains one of these")
    parser.add_argument("--jobs", type=int, default=1, help="files at the same time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one file")
    parser.add_argument("--json", type=Path, help="write the results here too, one line a file")
    options = parser.parse_args()
    files = sorted(options.folder.rglob("test_*.py"))
    chosen = [path for path in files if not options.files or any(part in str(path) for part in options.files)]
    if not chosen:
        print(f"no test_*.py in {options.folder}", file=sys.stderr)
        return 2
    width = max(len(str(path.relative_to(options.folder))) for path in chosen)
    print(f"{'file':<{width}}  passed failed errors skipped seconds")
    results: list[Result] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(lambda path: run_file(path, options.folder, options.timeout), chosen):
            print_row(result, width)
            results.append(result)
            if options.json:
                options.json.write_text("".join(json.dumps(asdict(one)) + "\n" for one in results))
    print_sum(results)
    return 0 if all(not result.problems for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
