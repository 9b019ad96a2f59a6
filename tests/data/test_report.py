"""Counts that add up to the input, the lines of the log, and what stops a run."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftlet.config.args import DataArgs
from swiftlet.data.report import DataReport, DatasetCount, LeftOut, Lengths, lengths_of
from swiftlet.data.verdict import SKIP, check_bad, check_report
from swiftlet.errors import DataError


def left_out(reason="json", line=3, *, is_bad=True, length=0):
    return LeftOut("a.jsonl", line, 100, reason, "what is wrong", "ab" * 20, is_bad, length)


def report_of(num_rows, *rows, **settings):
    report = DataReport([DatasetCount("a.jsonl", num_rows=num_rows)], **settings)
    for one in rows:
        report.leave_out(0, one)
    return report


class Split:
    """A split of given lengths."""

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths, np.int32)

    def __len__(self):
        return len(self.lengths)


reasons = st.lists(st.tuples(st.sampled_from(["json", "schema", "over_length"]), st.booleans()), max_size=60)


@given(reasons, st.integers(0, 100))
def test_rows_taken_and_left_out_add_up_to_the_input(faults, num_taken):
    rows = [left_out(reason, line, is_bad=is_bad) for line, (reason, is_bad) in enumerate(faults, 1)]
    report = report_of(num_taken + len(rows), *rows)
    (count,) = report.datasets
    assert count.num_taken + report.left_out().total() == report.num_rows
    assert count.num_taken == num_taken
    assert report.num_bad == sum(is_bad for _, is_bad in faults)
    assert report.left_out() == Counter(reason for reason, _ in faults)
    assert len(report.first_bad) == min(20, report.num_bad)


@given(reasons)
def test_a_report_is_the_same_after_it_was_stored(faults):
    rows = [
        left_out(reason, line, is_bad=is_bad, length=line) for line, (reason, is_bad) in enumerate(faults, 1)
    ]
    report = report_of(100, *rows, max_length=64)
    report.datasets[0].notes.update(["truncated", "truncated", "no_prompt"])
    report.train, report.val = Lengths(10.5, 1.25, 9, 12, 80), None
    again = DataReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert (again.lines(), again.warnings()) == (report.lines(), report.warnings())
    again.leave_out(0, left_out("json"))
    assert again.left_out()["json"] == report.left_out()["json"] + 1


def test_the_lines_of_the_log():
    report = report_of(10, left_out("json", 3), left_out("schema", 5), left_out("schema", 6))
    report.datasets[0].notes.update(["context_unused", "no_prompt", "no_prompt"])
    report.datasets.append(DatasetCount("b.jsonl", is_validation=True, num_rows=4))
    report.train, report.val = Lengths(169.337, 58.651, 35, 563, 9900), Lengths(170, 0, 170, 170, 100)
    assert report.lines() == [
        "dataset a.jsonl: 10 rows, 7 taken, 3 left out (schema 2, json 1)",
        "  json: a.jsonl:3",
        "  schema: a.jsonl:5, a.jsonl:6",
        "  noted: no_prompt 2 (a text without a question: all of it is trained on)",
        "  noted: context_unused 1 (a context column is not used; add it to the question with --columns "
        "context=input, and with --columns QUESTION=instruction where the question's column is not named instruction)",
        "validation dataset b.jsonl: 4 rows, 4 taken",
        "Dataset Token Length: 169.34±58.65, min=35, max=563, size=9900",
        "Dataset Token Length: 170.00±0.00, min=170, max=170, size=100 (validation)",
    ]


def test_the_first_three_places_of_a_reason_are_shown():
    report = report_of(10, *(left_out("json", line) for line in range(1, 6)))
    assert report.lines()[1] == "  json: a.jsonl:1, a.jsonl:2, a.jsonl:3, ..."


def test_the_longest_rows_are_remembered():
    rows = [left_out("over_length", line, is_bad=False, length=1000 + line % 7) for line in range(1, 20)]
    report = report_of(50, *rows, max_length=64)
    assert report.longest == [(1006, "a.jsonl:6"), (1006, "a.jsonl:13"), (1005, "a.jsonl:5")]
    assert report.warnings() == [
        "19 of 50 rows (38.0 %) are longer than 64 tokens and were left out; the longest has 1006 (a.jsonl:6); "
        "--max_length 1006 keeps all, --truncation_strategy truncation_left cuts their beginning"
    ]


def test_rows_without_labels_are_said():
    report = report_of(5, left_out("no_label_tokens", is_bad=False))
    assert report.warnings() == ["1 rows have no token to train on and were left out"]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_lengths_are_those_of_numpy(lengths):
    found = lengths_of(Split(lengths))
    assert (found.min, found.max, found.size) == (min(lengths), max(lengths), len(lengths))
    assert found.mean == pytest.approx(np.mean(lengths))
    assert found.std == pytest.approx(np.std(lengths), abs=1e-3)


def test_no_rows_have_no_lengths():
    assert lengths_of(Split([])) is None


def test_a_line_of_bad_rows_keeps_names_that_are_no_utf8():
    row = left_out()._replace(path="a\udc80.jsonl")
    assert row.to_json().encode("utf-8", "backslashreplace").decode().startswith('{"file": "a\\udc80.jsonl"')


def test_no_rows_at_all_is_an_error():
    with pytest.raises(DataError, match="no rows in a.jsonl"):
        check_report(report_of(0), DataArgs())


def test_good_rows_pass():
    check_report(report_of(5), DataArgs())
    check_report(report_of(5, left_out("no_label_tokens", is_bad=False)), DataArgs())


def test_more_bad_rows_than_are_listed_are_counted():
    report = report_of(100, *(left_out("json", line) for line in range(1, 31)))
    with pytest.raises(DataError) as caught:
        check_bad(report, DataArgs())
    assert caught.value.message.startswith(
        "30 of 100 rows cannot be trained on:\n  a.jsonl:1: json: what is wrong\n"
    )
    assert caught.value.message.endswith("\n  ... and 10 more")
    assert caught.value.message.count("a.jsonl:") == 20


def test_columns_that_a_bad_row_names_are_hinted_at():
    for what, hint in (
        ("what is wrong", SKIP),
        ("no answer: --columns A=query", "add the --columns that is named"),
        ("a list: jq -c '.' FILE", f"type the jq that is named there, {SKIP}"),
        ("--columns a=query, or jq -c '.' FILE", "add the --columns that is named there, type the jq"),
    ):
        row = LeftOut("a.jsonl", 1, 100, "schema", what, "ab" * 20, True, None)
        with pytest.raises(DataError) as caught:
            check_bad(report_of(1, row), DataArgs())
        assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("name", ["my rows.parquet", "rows.jsonl.gz", "rows.csv"])
def test_rows_that_jq_cannot_read_are_written_as_json_first(tmp_path, name):
    path, row = tmp_path / name, {"query": "é", "response": "b"}
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n" + json.dumps(row).encode()))
    else:
        path.write_text("query,response\né,b\né,b\n", encoding="utf-8")
    bad = LeftOut(str(path), 1, 100, "schema", "a list: jq -c '.' FILE", "ab" * 20, True, None)
    with pytest.raises(DataError) as caught:
        check_bad(report_of(1, bad), DataArgs())
    found = re.fullmatch(
        r"write the rows as JSON with python3 (.*) and type the jq that is .*", caught.value.hint
    )
    subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} {found.group(1)}"],
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    written = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == [row, row]


def test_rows_that_are_bad_alike_are_told_of_once():
    """A file whose columns have other names said the same twenty times, and what to type stood below it."""
    rows = [left_out("json", 3), left_out("schema", 4), left_out("json", 5), left_out("json", 9)]
    with pytest.raises(DataError) as caught:
        check_bad(report_of(10, *rows), DataArgs())
    assert caught.value.message.splitlines()[1:] == [
        "  a.jsonl:3: json: what is wrong",
        "    the same: a.jsonl:5, a.jsonl:9",
        "  a.jsonl:4: schema: what is wrong",
    ]


def test_a_share_at_the_limit_passes():
    report = report_of(100, left_out())
    check_bad(report, DataArgs(bad_rows="skip", max_bad_fraction=0.01))
    with pytest.raises(DataError, match="more than --max_bad_fraction 0.009") as caught:
        check_bad(report, DataArgs(bad_rows="skip", max_bad_fraction=0.009))
    assert caught.value.hint == "mend them, or allow more with --max_bad_fraction 0.02"


def test_where_all_rows_are_gone_the_first_bad_one_is_shown():
    report = report_of(1, left_out())
    with pytest.raises(DataError, match="none of 1 rows can be trained on: json 1") as caught:
        check_report(report, DataArgs(bad_rows="skip", max_bad_fraction=1.0))
    assert caught.value.hint == "a.jsonl:3: json: what is wrong"
