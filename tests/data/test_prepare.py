"""Rows to stores: the split, the cache, what stops a run, and what is left behind when one is stopped."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_template import make_template, row, write_rows

from swiftlet import log
from swiftlet.config.args import DataArgs
from swiftlet.data import draft as draft_module
from swiftlet.data import fill as fill_module
from swiftlet.data.cachekey import ALWAYS_READ_BYTES, MEMORY, hash_files
from swiftlet.data.encode import CHUNK_ROWS
from swiftlet.data.held_out import read_split
from swiftlet.data.prepare import prepare
from swiftlet.data.report import DataReport, DatasetCount
from swiftlet.data.rows import IGNORE_INDEX
from swiftlet.data.split import hold_out, num_held_out
from swiftlet.errors import DataError, UsageError
from swiftlet.faults import damage


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def lines(monkeypatch):
    """What the log said."""
    said = []

    class Keep(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    logger = log.logger()
    handler = Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield said
    logger.removeHandler(handler)
    logger.setLevel(level)


class Kitchen:
    """Prepares rows of files below one folder."""

    def __init__(self, folder, template):
        self.folder, self.template = folder, template
        self.output = folder / "output"

    def write(self, rows, name="rows.jsonl"):
        return str(write_rows(self.folder / name, rows))

    def __call__(self, *datasets, max_length=64, template=None, **settings):
        return prepare(
            DataArgs(dataset=datasets, **settings),
            template or self.template,
            max_length=max_length,
            cache_dir=self.folder / "cache",
            bad_rows=self.output / "bad_rows.jsonl",
        )

    def stores(self):
        return sorted(path.name for path in (self.folder / "cache").iterdir() if path.is_dir())


@pytest.fixture
def kitchen(tmp_path, template):
    return Kitchen(tmp_path, template)


def samples(store):
    return [(store[i].input_ids.tolist(), store[i].labels.tolist()) for i in range(len(store))]


# The split


@pytest.mark.parametrize(
    ("num_rows", "ratio", "held"),
    [
        (10000, 0.01, 100),
        (2900, 0.01, 29),
        (10, 0.01, 1),
        (1, 0.5, 0),
        (0, 0.5, 0),
        (5, 0.0, 0),
        (2, 0.99, 1),
    ],
)
def test_how_many_rows_are_held_out(num_rows, ratio, held):
    assert num_held_out(num_rows, ratio) == held


@given(st.integers(0, 400), st.floats(0, 0.99), st.integers(0, 2**40))
def test_held_out_rows_are_distinct_and_follow_from_the_seed(num_rows, ratio, seed):
    picks = hold_out(num_rows, ratio, seed)
    assert len(set(picks.tolist())) == len(picks) == num_held_out(num_rows, ratio)
    assert all(0 <= pick < num_rows for pick in picks)
    assert picks.tolist() == hold_out(num_rows, ratio, seed).tolist()


def test_the_draw_is_the_same_in_every_version():
    assert hold_out(10000, 0.0005, 42).tolist() == [6394, 251, 2751, 2234, 7365]


def test_each_row_is_equally_likely_to_be_held_out():
    counts = np.zeros(10)
    for seed in range(2000):
        counts[hold_out(10, 0.3, seed)] += 1
    assert abs(counts / 2000 - 0.3).max() < 0.05


def test_the_reference_split(kitchen):
    made = kitchen(kitchen.write([row(number) for number in range(10000)]))
    assert (len(made.train), len(made.val)) == (9900, 100)
    places = [made.train.origin(i) for i in range(9900)] + [made.val.origin(i) for i in range(100)]
    assert len(set(places)) == 10000


def test_infer_finds_the_same_held_out_rows_from_the_text(kitchen):
    rows = [row(number, 4 + 70 * (number % 9 == 0)) for number in range(300)]
    rows[17] = {"colour": "red"}
    path = kitchen.write(rows)
    settings = {"dataset_test_ratio": 0.1, "bad_rows": "skip", "max_bad_fraction": 0.5}
    made = kitchen(path, **settings)
    num_train, held = read_split(DataArgs(dataset=(path,), **settings))
    assert (num_train, len(held)) == (269, 30)
    kept = [one for one in held if len(kitchen.template.encode(one).input_ids) <= 64]
    assert len(kept) < 30
    assert [str(one.origin) for one in kept] == [made.val.origin(i) for i in range(len(made.val))]


def test_another_seed_holds_out_other_rows(kitchen):
    path = kitchen.write([row(number) for number in range(100)])
    first, second = (kitchen(path, dataset_test_ratio=0.1, dataset_seed=seed) for seed in (1, 2))
    assert samples(first.val) != samples(second.val)
    assert first.data_hash != second.data_hash


def test_datasets_follow_one_another_each_with_its_own_sample(kitchen):
    first = kitchen.write([row(number) for number in range(50)], "first.jsonl")
    second = kitchen.write([row(number) for number in range(100, 150)], "second.jsonl")
    made = kitchen(f"{second}#20", first, dataset_test_ratio=0.0)
    assert made.val is None
    files = [Path(made.train.origin(i).rsplit(":", 1)[0]).name for i in range(len(made.train))]
    assert files == ["second.jsonl"] * 20 + ["first.jsonl"] * 50
    assert [one.num_rows for one in made.report.datasets] == [20, 50]


def test_validation_data_of_its_own_is_taken_whole(kitchen):
    train = kitchen.write([row(number) for number in range(50)])
    val = kitchen.write([row(number) for number in range(200, 230)], "val.jsonl")
    made = kitchen(train, val_dataset=(val,))
    assert (len(made.train), len(made.val)) == (50, 30)
    num_train, held = read_split(DataArgs(dataset=(train,), val_dataset=(val,)))
    assert num_train == 0
    assert [str(one.origin) for one in held] == [made.val.origin(i) for i in range(30)]


def test_with_nothing_held_out_there_are_only_rows_for_training(kitchen):
    args = DataArgs(dataset=(kitchen.write([row(number) for number in range(8)]),), dataset_test_ratio=0.0)
    assert read_split(args) == (8, [])


# The store


def test_a_store_holds_what_the_template_makes(kitchen):
    path = kitchen.write([row(number, 3 + number % 7) for number in range(40)])
    made = kitchen(path, dataset_test_ratio=0.0)
    _, texts = read_split(DataArgs(val_dataset=(path,)))
    assert len(texts) == 40
    for index, text in enumerate(texts):
        expected = kitchen.template.encode(text)
        assert made.train[index].input_ids.tolist() == expected.input_ids
        assert made.train[index].labels.tolist() == expected.labels
        assert made.train.origin(index) == f"{path}:{index + 1}"
    assert made.train.lengths.tolist() == [len(made.train[i].input_ids) for i in range(40)]
    assert made.train.num_labels.tolist() == [
        int((made.train[i].labels != IGNORE_INDEX).sum()) for i in range(40)
    ]


@pytest.mark.parametrize("num_proc", [1, 2, 3])
def test_the_number_of_processes_changes_nothing(kitchen, tmp_path, num_proc):
    rows = [row(number, 3 + number % 40) for number in range(1200)]
    rows[5], rows[900] = {"query": "hello"}, "{broken"
    path = kitchen.write(rows)
    settings = {"bad_rows": "skip", "max_length": 30, "dataset_test_ratio": 0.05}
    made = kitchen(path, preprocess_num_proc=num_proc, **settings)
    other = Kitchen(tmp_path / "other", kitchen.template)
    other.folder.mkdir()
    alone = other(path, preprocess_num_proc=1, **settings)
    assert made.data_hash == alone.data_hash
    assert samples(made.train) == samples(alone.train)
    assert made.report == alone.report
    assert (kitchen.output / "bad_rows.jsonl").read_text() == (other.output / "bad_rows.jsonl").read_text()


def test_one_changed_row_changes_the_hash_and_where_a_file_lies_does_not(kitchen):
    rows = [row(number) for number in range(30)]
    first = kitchen(kitchen.write(rows))
    moved = kitchen(kitchen.write(rows, "moved.jsonl"))
    rows[29] = row(29, 5)
    changed = kitchen(kitchen.write(rows, "changed.jsonl"))
    assert first.data_hash == moved.data_hash != changed.data_hash


def test_the_second_run_finds_the_store_and_says_the_same(kitchen, lines, monkeypatch):
    rows = [row(number, 3 + number % 80) for number in range(600)]
    rows[3] = "{broken"
    path = kitchen.write(rows)
    made = kitchen(path, bad_rows="skip")
    said = list(lines)
    lines.clear()
    (kitchen.output / "bad_rows.jsonl").unlink()
    monkeypatch.setattr("swiftlet.data.prepare.fill", None)
    again = kitchen(path, bad_rows="skip")
    assert lines == said
    assert again.data_hash == made.data_hash
    assert (kitchen.output / "bad_rows.jsonl").exists()


def test_a_process_to_which_the_launcher_spoke_says_nothing(kitchen, lines):
    path = kitchen.write([row(number) for number in range(20)])
    with log.silent():
        kitchen(path)
    assert lines == []
    with log.silent(False):
        kitchen(path)
    assert len(lines) == 3


def test_a_changed_file_is_never_answered_with_old_tokens(kitchen):
    path = kitchen.write([row(1), row(2)])
    before = Path(path).stat()
    first = kitchen(path, dataset_test_ratio=0.0)
    text = Path(path).read_text(encoding="utf-8")
    Path(path).write_text(text.replace("w2", "w3"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Path(path).stat().st_size == before.st_size
    assert kitchen(path, dataset_test_ratio=0.0).data_hash != first.data_hash


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 12},
        {"truncation_strategy": "truncation_left"},
        {"dataset_seed": 7},
        {"dataset_test_ratio": 0.2},
        {"check_dataset_strategy": "warning"},
        {"columns": {"query": "prompt"}},
    ],
)
def test_what_decides_over_tokens_names_the_store(kitchen, change):
    path = kitchen.write([row(number) for number in range(20)])
    kitchen(path)
    kitchen(path, **change)
    assert len(kitchen.stores()) == 2


def test_what_does_not_decide_over_tokens_finds_the_same_store(kitchen):
    path = kitchen.write([row(number) for number in range(20)])
    kitchen(path)
    kitchen(path, bad_rows="skip", max_bad_fraction=0.5, preprocess_num_proc=1)
    assert len(kitchen.stores()) == 1


def test_another_template_makes_another_store(kitchen, tmp_path):
    path = kitchen.write([row(number) for number in range(20)])
    kitchen(path)
    chat = "{% for m in messages %}{{ m.role }} {{ m.content }} <eos>{% endfor %}"
    kitchen(path, template=make_template(tmp_path / "other", chat))
    assert len(kitchen.stores()) == 2


def test_a_damaged_store_is_made_again(kitchen, lines):
    path = kitchen.write([row(number) for number in range(20)])
    made = kitchen(path)
    (name,) = kitchen.stores()
    expected = samples(made.train)
    (kitchen.folder / "cache" / name / "tokens.bin").write_bytes(b"\0" * 8)
    assert samples(kitchen(path).train) == expected
    assert any("is damaged and is made again" in line for line in lines)


def test_a_cache_that_has_grown_large_says_where_it_lies(kitchen, lines, monkeypatch):
    """Every length, template, seed and version makes a store of its own, and nothing removes one."""
    files = [kitchen.write([row(number) for number in range(4)], f"{name}.jsonl") for name in "ab"]
    kitchen(files[0])
    assert not [line for line in lines if "GiB" in line]
    monkeypatch.setattr("swiftlet.data.prepare.LARGE_BYTES", 1)
    kitchen(files[0])
    assert not [line for line in lines if "GiB" in line], "only whoever adds a store hears of it"
    kitchen(files[1])
    assert [line.split(":")[0] for line in lines if "GiB" in line] == [
        f"tokenised rows of all runs take 0.0 GiB in {kitchen.folder / 'cache'}"
    ]


@pytest.mark.parametrize("how", ["bitflip", "truncate", "empty", "missing", "list"])
@pytest.mark.parametrize(
    "file", ["store.json", "rows.bin", "val.index.bin", "train.lengths.bin", "files.json"]
)
def test_a_damaged_file_of_a_store_makes_it_again(kitchen, lines, file, how):
    path = kitchen.write([row(number) for number in range(20)])
    expected = samples(kitchen(path).train)
    (name,) = kitchen.stores()
    spoil(kitchen.folder / "cache" / name / file, how)
    made = kitchen(path)
    assert samples(made.train) == expected
    assert any("is damaged and is made again" in line for line in lines)
    assert samples(kitchen(path).train) == expected


def spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how in ("empty", "list"):
        path.write_text("" if how == "empty" else "[]")
    else:
        damage(path, how)


def test_a_bit_flipped_in_the_tokens_is_noticed_and_mended_by_the_next_start(kitchen):
    path = kitchen.write([row(number) for number in range(20)])
    expected = samples(kitchen(path, dataset_test_ratio=0.0).train)
    (name,) = kitchen.stores()
    damage(kitchen.folder / "cache" / name / "tokens.bin", "bitflip")
    with pytest.raises(DataError, match="start again: a damaged token cache is made again"):
        samples(kitchen(path, dataset_test_ratio=0.0).train)
    assert samples(kitchen(path, dataset_test_ratio=0.0).train) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"sha256": "0", "content": "{}"}'])
def test_a_damaged_journal_begins_the_draft_anew(tmp_path, text):
    report = DataReport([DatasetCount("d")])
    draft_module.Draft(tmp_path / "a", report, 1, []).save()
    (tmp_path / "a" / "journal.json").write_text(text)
    assert draft_module.Draft(tmp_path / "a", report, 1, []).num_rows == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"PATH": 5}', '{"PATH": {"sha256": "x"}}'])
def test_a_damaged_memory_of_files_is_forgotten(tmp_path, monkeypatch, text):
    monkeypatch.setattr("swiftlet.data.cachekey.ALWAYS_READ_BYTES", 0)
    path = tmp_path / "rows.jsonl"
    path.write_text("x")
    expected = hash_files([path], tmp_path)
    (tmp_path / MEMORY).write_text(text.replace("PATH", str(path)))
    assert hash_files([path], tmp_path) == expected


def test_a_cache_that_cannot_be_written_is_named_with_what_to_type(kitchen):
    path = kitchen.write([row(number) for number in range(20)])
    (kitchen.folder / "cache").touch()
    with pytest.raises(
        UsageError, match="cache cannot be written: (File exists|Not a directory)\nhint: type SWIFTLET_CACHE="
    ):
        kitchen(path)
    (kitchen.folder / "cache").unlink()
    kitchen(path)
    for store in kitchen.stores():
        shutil.rmtree(kitchen.folder / "cache" / store)
        (kitchen.folder / "cache" / f"{store}.lock").mkdir()
    with pytest.raises(UsageError, match="cache cannot be written: Is a directory"):
        kitchen(path)


def test_large_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"x")
    os.truncate(path, ALWAYS_READ_BYTES + 1)
    monkeypatch.setattr("swiftlet.data.cachekey.SETTLED_S", 0.0)
    time.sleep(0.02)
    first = hash_files([path], tmp_path)
    assert (tmp_path / MEMORY).exists()
    with monkeypatch.context() as patch:
        patch.setattr("swiftlet.data.cachekey.sha256", None)
        assert hash_files([path], tmp_path) == first
    with path.open("r+b") as file:
        file.write(b"y")
    assert hash_files([path], tmp_path) != first


def test_a_cache_that_can_only_be_read_forgets_large_files_and_serves(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x")
    expected = hash_files([path])
    monkeypatch.setattr("swiftlet.data.cachekey.ALWAYS_READ_BYTES", 0)
    monkeypatch.setattr("swiftlet.data.cachekey.SETTLED_S", -1.0)

    def refuse(*args, **settings):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("swiftlet.data.cachekey.write_json", refuse)
    assert hash_files([path], tmp_path) == expected


def test_a_large_file_changed_a_moment_ago_is_not_remembered(tmp_path):
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"x")
    os.truncate(path, ALWAYS_READ_BYTES + 1)
    hash_files([path], tmp_path)
    assert not (tmp_path / MEMORY).exists()


# What stops a run


def test_bad_rows_stop_the_run_and_are_listed(kitchen, lines):
    rows = [row(number) for number in range(40)]
    rows[6], rows[30] = '{"query": "hello"', {"query": "hello", "response": ""}
    path = kitchen.write(rows)
    with pytest.raises(DataError) as caught:
        kitchen(path)
    assert caught.value.exit_code == 4
    assert caught.value.message.startswith("2 of 40 rows cannot be trained on:\n")
    assert f"{path}:7: json: " in caught.value.message
    assert f"{path}:31: empty_assistant: " in caught.value.message
    assert "--bad_rows skip" in caught.value.hint
    written = [json.loads(line) for line in (kitchen.output / "bad_rows.jsonl").read_text().splitlines()]
    assert [(one["line"], one["reason"]) for one in written] == [(7, "json"), (31, "empty_assistant")]
    assert set(written[0]) == {"file", "line", "byte", "reason", "detail", "sha1"}
    assert any(line.startswith(f"dataset {path}: 40 rows, 38 taken, 2 left out (") for line in lines)


@pytest.mark.parametrize("is_kept", [False, True])
def test_the_run_stops_at_the_twentieth_bad_row(kitchen, monkeypatch, is_kept):
    if is_kept:
        monkeypatch.setattr("swiftlet.data.prepare.WORTH_KEEPING", 0)
    path = kitchen.write([{"query": "hello"}] * 1000)
    for _ in range(2):
        with pytest.raises(DataError, match="the first 20 of them") as caught:
            kitchen(path)
        assert caught.value.message.count(path) == 20
    assert [name.endswith(".draft") for name in kitchen.stores()] == [True] * is_kept
    assert len((kitchen.output / "bad_rows.jsonl").read_text().splitlines()) >= 20
    assert not list((kitchen.folder / "cache").glob("*.lock"))


def test_skipped_rows_are_counted_exactly_also_after_a_stop(kitchen):
    rows = [row(number) for number in range(1000)]
    rows[100:130] = [{"query": "hello"}] * 30
    path = kitchen.write(rows)
    with pytest.raises(DataError):
        kitchen(path)
    made = kitchen(path, bad_rows="skip", max_bad_fraction=0.05)
    assert made.report.num_bad == 30
    assert len(made.train) + len(made.val) == 970
    assert len((kitchen.output / "bad_rows.jsonl").read_text().splitlines()) == 30
    assert len(kitchen.stores()) == 1


def test_f42_too_many_bad_rows_stop_the_run_although_they_may_be_skipped(kitchen):
    path = kitchen.write([row(number) for number in range(95)] + [{"query": "hello"}] * 5)
    with pytest.raises(
        DataError, match=r"5 of 100 rows .* 5\.00%, more than --max_bad_fraction 0\.01"
    ) as caught:
        kitchen(path, bad_rows="skip")
    assert "--max_bad_fraction 0.06" in caught.value.hint
    assert len(kitchen(path, bad_rows="skip", max_bad_fraction=0.06).train) == 94


def test_bad_rows_of_an_earlier_run_do_not_stay(kitchen):
    kitchen(kitchen.write([*(row(number) for number in range(200)), "{"]), bad_rows="skip")
    assert (kitchen.output / "bad_rows.jsonl").exists()
    kitchen(kitchen.write([row(number) for number in range(200)]))
    assert not (kitchen.output / "bad_rows.jsonl").exists()


def test_long_rows_are_left_out_loudly(kitchen, lines):
    path = kitchen.write([row(number, 100 if number in (4, 9) else 5) for number in range(50)])
    made = kitchen(path)
    assert len(made.train) + len(made.val) == 48
    assert made.report.left_out() == {"over_length": 2}
    (line,) = [line for line in lines if "are longer than" in line]
    assert "2 of 50 rows (4.0 %) are longer than 64 tokens and were left out; the longest has 106" in line
    assert f"{path}:5" in line
    assert "--max_length 106" in line


def test_no_limit_keeps_long_rows(kitchen):
    path = kitchen.write([row(number, 100) for number in range(5)])
    assert kitchen(path, max_length=-1).train.lengths.tolist() == [106] * 4


def test_losing_more_than_half_of_the_rows_is_an_error(kitchen):
    path = kitchen.write([row(number, 100 if number % 3 else 5) for number in range(30)])
    with pytest.raises(DataError, match="20 of 30 rows are longer than 64 tokens") as caught:
        kitchen(path)
    assert "--max_length 106" in caught.value.hint


def test_f42_losing_all_rows_names_the_reasons(kitchen):
    with pytest.raises(DataError, match="none of 3 rows can be trained on: over_length 3"):
        kitchen(kitchen.write([row(number, 100) for number in range(3)]))
    path = kitchen.write([{"query": "hello"}] * 3, "bad.jsonl")
    with pytest.raises(DataError, match="none of 3 rows can be trained on: [a-z_]+ 3"):
        kitchen(path, bad_rows="skip", max_bad_fraction=1.0)


def test_duplicates_are_found_by_content(kitchen, lines):
    path = kitchen.write([row(number % 45) for number in range(50)])
    assert len(kitchen(path, dataset_test_ratio=0.0).train) == 50
    warned = kitchen(path, dataset_test_ratio=0.0, check_dataset_strategy="warning")
    assert len(warned.train) == 50
    assert any(
        f"5 of 50 rows repeat another one, such as {path}:46 repeats {path}:1" in line for line in lines
    )
    with pytest.raises(DataError, match="5 of 50 rows repeat another one") as caught:
        kitchen(path, check_dataset_strategy="error")
    assert f"{path}:50 repeats {path}:5" in caught.value.message
    assert "--check_dataset_strategy discard" in caught.value.hint
    made = kitchen(path, dataset_test_ratio=0.0, check_dataset_strategy="discard")
    assert len(made.train) == 45
    assert made.report.left_out() == {"duplicate_id": 5}


def test_discarded_duplicates_are_not_counted_for_the_split(kitchen):
    rows = [row(number // 2, 4 + 70 * (number % 14 == 0)) for number in range(200)]
    path = kitchen.write(rows)
    settings = {"dataset_test_ratio": 0.2, "check_dataset_strategy": "discard"}
    made = kitchen(path, **settings)
    num_train, held = read_split(DataArgs(dataset=(path,), **settings))
    kept = [str(one.origin) for one in held if len(kitchen.template.encode(one).input_ids) <= 64]
    assert kept == [made.val.origin(i) for i in range(len(made.val))]
    assert num_train + len(held) == made.report.num_rows - made.report.left_out()["duplicate_id"]


def test_repeated_rows_of_validation_data_of_its_own_are_found_again(kitchen):
    train = kitchen.write([row(number // 2) for number in range(50)])
    val = kitchen.write([row(200 + number // 3) for number in range(30)], "val.jsonl")
    settings = {"val_dataset": (val,), "check_dataset_strategy": "discard"}
    made = kitchen(train, **settings)
    _, held = read_split(DataArgs(dataset=(train,), **settings))
    assert len(held) == 30
    assert [str(one.origin) for one in held] == [made.val.origin(i) for i in range(len(made.val))]


def test_a_file_that_changes_while_it_is_read_is_no_store(kitchen, monkeypatch):
    path = kitchen.write([row(number) for number in range(20)])
    real = fill_module.fill

    def meddle(*args, **settings):
        done = real(*args, **settings)
        Path(path).write_text("{}\n", encoding="utf-8")
        return done

    monkeypatch.setattr("swiftlet.data.prepare.fill", meddle)
    with pytest.raises(DataError, match="changed while being read"):
        kitchen(path)


def test_a_draft_of_a_file_that_changed_meanwhile_is_not_gone_on_with(kitchen, monkeypatch):
    """The file says again what it said when the draft was begun, and the draft holds what it said in between."""
    rows = [row(number) for number in range(300)]
    path = kitchen.write(rows)
    real = fill_module.fill

    def meddle(*args, **settings):
        kitchen.write([row(number + 5000) for number in range(300)])
        return real(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("swiftlet.data.prepare.fill", meddle)
        with pytest.raises(DataError, match="changed while being read"):
            kitchen(path)
    kitchen.write(rows)
    other = Kitchen(kitchen.folder / "other", kitchen.template)
    other.folder.mkdir()
    assert kitchen(path).data_hash == other(path).data_hash


def test_rows_for_validation_that_are_trained_on_too_are_said(kitchen, lines):
    path = kitchen.write([row(number) for number in range(40)])
    made = kitchen(path, path, dataset_test_ratio=0.1)
    first, other = re.fullmatch(r"(\S+) \(trained on as (\S+)\)", made.report.shared).groups()
    assert first == other
    assert first in {made.val.origin(index) for index in range(len(made.val))}
    said = f"warning: 8 of 8 validation rows are trained on too, such as {first} (trained on as {first}): eval_loss"
    assert any(line.startswith(said) and "--check_dataset_strategy discard" in line for line in lines)
    assert kitchen(path, path, check_dataset_strategy="discard").report.num_shared == 0
    other = kitchen.write([row(number) for number in range(39, 50)], "other.jsonl")
    made = kitchen(path, val_dataset=(other,))
    assert (made.report.num_shared, made.report.shared) == (1, f"{other}:1 (trained on as {path}:40)")
    assert "give other rows with --val_dataset" in lines[-1]
    assert kitchen(path).report.num_shared == 0


def test_a_split_with_nothing_left_is_said(kitchen, lines):
    made = kitchen(kitchen.write([row(1)]))
    assert made.val is None
    assert "warning: no row is left for validation: there is no evaluation" in lines


# What an interrupted run leaves


def test_an_interrupted_draft_goes_on_where_it_was(kitchen, monkeypatch):
    rows = [row(number, 3 + number % 9) for number in range(3000)]
    rows[40] = "{"
    path = kitchen.write(rows)
    monkeypatch.setattr(draft_module, "SAVE_EVERY_S", -1.0)
    real = draft_module.Draft.append

    def interrupt(draft, chunk):
        if draft.num_chunks == 5:
            draft._outputs["tokens.bin"].write(b"half a chunk")
            draft._outputs["tokens.bin"].flush()
            raise KeyboardInterrupt
        real(draft, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(draft_module.Draft, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            kitchen(path, bad_rows="skip", preprocess_num_proc=1)
    assert [name.endswith(".draft") for name in kitchen.stores()] == [True]
    encoded = []
    monkeypatch.setattr(
        draft_module.Draft, "append", lambda draft, chunk: (encoded.append(chunk), real(draft, chunk))
    )
    resumed = kitchen(path, bad_rows="skip", preprocess_num_proc=1)
    assert len(encoded) == -(-len(rows) // CHUNK_ROWS) - 5
    other = Kitchen(kitchen.folder / "other", kitchen.template)
    other.folder.mkdir()
    whole = other(path, bad_rows="skip")
    assert resumed.data_hash == whole.data_hash
    assert resumed.report == whole.report
    assert [name.endswith(".draft") for name in kitchen.stores()] == [False]


PREPARE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_template import make_template
from swiftlet.config.args import DataArgs
from swiftlet.data.prepare import prepare
folder = Path(sys.argv[2])
args = DataArgs(dataset=(str(folder / "rows.jsonl"),), preprocess_num_proc=2)
made = prepare(args, make_template(folder / "tokenizer"), max_length=64, cache_dir=folder / "cache", bad_rows=None)
print(made.data_hash)
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(Path(__file__).parent), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def members_of(group):
    """Return the running processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_ctrl_c_leaves_no_half_store_and_no_process(kitchen):
    kitchen.write([row(number) for number in range(30000)])
    run = start(kitchen.folder)
    assert wait_for(lambda: len(members_of(run.pid)) == 3)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=20)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in said
    assert wait_for(lambda: not members_of(run.pid))
    assert [name for name in kitchen.stores() if not name.endswith(".draft")] == []


def test_a_lock_that_is_removed_while_one_waits_is_taken_anew(tmp_path):
    path, other = tmp_path / "a.lock", None

    def remove(is_first):
        nonlocal other
        path.unlink()
        other = path.open("a")
        holder.close()

    holder = path.open("a")
    fcntl.flock(holder, fcntl.LOCK_EX)
    with draft_module.locked(path, remove):
        assert os.path.samestat(path.stat(), os.fstat(other.fileno()))
    assert not path.exists()
    other.close()


def test_a_cache_on_a_file_system_without_locks_is_refused_with_what_to_type(kitchen, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("swiftlet.files.fcntl.flock", refuse)
    path = kitchen.write([row(1)])
    with pytest.raises(UsageError, match="has no locks: two runs would .*\nhint: type SWIFTLET_CACHE=FOLDER"):
        kitchen(path)
    assert kitchen.stores() == []


def test_two_runs_at_a_time_make_one_store(kitchen):
    kitchen.write([row(number) for number in range(3000)])
    runs = [start(kitchen.folder) for _ in range(2)]
    answers = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(kitchen.stores()) == 1


def test_a_full_disk_says_so_and_leaves_no_store(kitchen, monkeypatch):
    path = kitchen.write([row(number) for number in range(20)])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="cannot be written: No space left"):
        kitchen(path)
    assert all(name.endswith(".draft") for name in kitchen.stores())


def test_signs_of_life(kitchen, monkeypatch):
    folder = kitchen.folder / "beats"
    folder.mkdir()
    monkeypatch.setenv("SWIFTLET_HEARTBEAT_DIR", str(folder))
    kitchen(kitchen.write([row(number) for number in range(20)]))
    assert json.loads((folder / "rank-0.json").read_text())["phase"] == "tokenise"


def test_arguments_are_not_changed(kitchen):
    args = DataArgs(dataset=(kitchen.write([row(number) for number in range(20)]),))
    before = replace(args)
    read_split(args)
    assert args == before
