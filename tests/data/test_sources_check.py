"""The script that compares files with an answer key says where they differ, and only there."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "check_data_cases.py"
GOOD = '{"query": "a", "response": "b"}\n'


def run(folder, *flags):
    command = [sys.executable, str(SCRIPT), str(folder), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write(folder, cases):
    for case, content in cases:
        (folder / case["file"]).write_text(content)
    (folder / "MANIFEST.jsonl").write_text("".join(json.dumps(case) + "\n" for case, _ in cases))


def broken(name, outcome, good, bad):
    return {"file": name, "outcome": outcome, "rows_good": good, "rows_bad": bad, "says": "the key"}


def test_equal_outcomes_are_counted_and_exit_0(tmp_path):
    cases = [
        (broken("a.jsonl", "accept", 1, 0), GOOD),
        (broken("b.jsonl", "error", 1, 1), GOOD + "no\n"),
        (broken("c.jsonl", "error", 0, 0), ""),
        (broken("d.csv", "ambiguous", 1, 0), "query,response,response\na,b,c\n"),
        ({"file": "e.jsonl", "rows": 2, "strict": 1, "rejected": 1}, GOOD + "{}\n"),
        ({"file": "f.json", "rows": 0, "strict": 0, "file_error": "a map"}, '{"a": {"b": 1}}'),
        (
            {
                "file": "g.jsonl",
                "rows": 1,
                "strict": 0,
                "rejected": 1,
                "with_columns": {"columns": {"q": "query"}, "strict": 1},
            },
            '{"q": "a", "response": 7, "answer": "b"}\n',
        ),
    ]
    cases[-1][0]["with_columns"]["columns"]["answer"] = "response"
    write(tmp_path, cases)
    done = run(tmp_path, "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tmp_path.name}: 7 of 7 files as keyed" in done.stdout
    assert "as keyed  b.jsonl: 1 taken, 1 rejected; json 1; first: line 2: not JSON" in done.stdout


def test_each_difference_is_named_and_exit_1(tmp_path):
    write(
        tmp_path,
        [
            (broken("a.jsonl", "accept", 2, 0), GOOD),
            (broken("b.jsonl", "error", 0, 1), GOOD),
            ({"file": "c.jsonl", "rows": 2, "strict": 2, "rejected": 0}, GOOD),
            ({"file": "d.jsonl", "rows": 0, "strict": 0, "file_error": "broken"}, GOOD),
            ({"file": "e.jsonl", "rows": 1, "strict": 1, "rejected": 0}, ""),
        ],
    )
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("DIFFERS") == 5
    for text in (
        "should be accept, 2 good",
        "should be 2 taken, 0 rejected",
        "should stop: broken",
        "should not stop",
    ):
        assert text in done.stdout
