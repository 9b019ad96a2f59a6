"""Repeated rows are found in parts as they are by comparing all rows at once."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from swiftlet.data import duplicates
from swiftlet.data.duplicates import count_duplicates, mark_duplicates
from swiftlet.data.report import NUM_OFFENDERS, NUM_SHOWN, DataReport, DatasetCount
from swiftlet.data.split import Split
from swiftlet.data.store import DUPLICATE, FILES, KEPT, LEFT_OUT, ROW, ROWS, write_split


def write_rows(folder, contents, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.zeros(len(contents), ROW)
    rows["content"] = contents
    rows["status"] = rng.choice([KEPT, KEPT, KEPT, LEFT_OUT], len(rows))
    rows["line"] = np.arange(1, len(rows) + 1)
    rows["dataset"] = rng.integers(0, 2, len(rows))
    rows.tofile(folder / ROWS)
    (folder / FILES).write_text(json.dumps(["rows.jsonl"]))
    return rows


def all_at_once(rows):
    """Return (row, first row with its content) of every row that is not the first."""
    seen, pairs = {}, []
    for number, content in enumerate(map(bytes, rows["content"])):
        first = seen.setdefault(content, number)
        if first != number:
            pairs.append((number, first))
    return pairs


@pytest.mark.parametrize("part_rows", [7, 100, 999, 10_000])
@pytest.mark.parametrize("is_discarded", [True, False])
def test_repeats_are_those_of_all_rows_at_once(tmp_path, monkeypatch, part_rows, is_discarded):
    monkeypatch.setattr(duplicates, "PART_ROWS", part_rows)
    rng = np.random.default_rng(part_rows)
    # few values in each half, so that halves agree where the whole does not
    contents = rng.integers(0, 2**64, (40, 1), np.uint64)[rng.integers(0, 40, (3000, 2))][..., 0]
    rows = write_rows(tmp_path, contents)
    num_dataset_rows = 2500
    expected = all_at_once(rows[:num_dataset_rows])
    kept = [pair for pair in expected if rows["status"][pair[0]] == KEPT]
    assert 500 < len(kept) < len(expected)

    repeats = mark_duplicates(tmp_path, num_dataset_rows=num_dataset_rows, is_discarded=is_discarded)
    assert repeats == (len(kept), kept[:NUM_SHOWN])
    if is_discarded:
        rows["status"][[later for later, _ in expected]] |= DUPLICATE
    assert (np.fromfile(tmp_path / ROWS, ROW) == rows).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILES, ROWS]
    again = mark_duplicates(tmp_path, num_dataset_rows=num_dataset_rows, is_discarded=is_discarded)
    assert again == repeats  # as after an interruption

    report = DataReport([DatasetCount("a"), DatasetCount("b")])
    count_duplicates(report, tmp_path, repeats, is_discarded=is_discarded)
    assert report.num_repeated == len(kept)
    assert report.repeated == [
        f"rows.jsonl:{later + 1} repeats rows.jsonl:{first + 1}" for later, first in kept[:NUM_SHOWN]
    ]
    for number, dataset in enumerate(report.datasets):
        own = [later for later, _ in kept if rows["dataset"][later] == number] if is_discarded else []
        assert dataset.left_out.total() == len(own)
        assert dataset.offenders == (
            {"duplicate_id": [f"rows.jsonl:{later + 1}" for later in own[:NUM_OFFENDERS]]} if own else {}
        )


def test_no_rows_repeat_nothing(tmp_path):
    write_rows(tmp_path, np.empty((0, 2), np.uint64))
    assert mark_duplicates(tmp_path, num_dataset_rows=0, is_discarded=True) == (0, [])


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "PART_ROWS", 20_000)
    peaks = []
    for num_rows in (40_000, 400_000):
        contents = np.random.default_rng(1).integers(0, 2**64, (num_rows, 2), np.uint64)
        contents[num_rows // 2 :] = contents[: num_rows // 2]
        write_rows(tmp_path, contents)
        del contents
        tracemalloc.start()
        found = mark_duplicates(tmp_path, num_dataset_rows=num_rows, is_discarded=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert 0.7 < found.total / (num_rows // 2) < 0.8
    assert peaks[1] < 1.1 * peaks[0]


def mapped_bytes():
    """Return the pages of files that count as memory of this process."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssFile:\s*(\d+)", text)[1])


def test_splitting_maps_no_rows(tmp_path):
    rows = write_rows(tmp_path, np.random.default_rng(2).integers(0, 2**64, (300_000, 2), np.uint64))
    before = mapped_bytes()
    mark_duplicates(tmp_path, num_dataset_rows=len(rows), is_discarded=True)
    split = Split(tmp_path, num_dataset_rows=len(rows), ratio=0.01, seed=1)
    write_split(tmp_path, "train", split.train())
    write_split(tmp_path, "val", split.held_out())
    report = DataReport([DatasetCount("a"), DatasetCount("b")])
    count_duplicates(
        report,
        tmp_path,
        mark_duplicates(tmp_path, num_dataset_rows=len(rows), is_discarded=True),
        is_discarded=True,
    )
    assert mapped_bytes() - before < rows.nbytes / 4
    kept = np.concatenate([np.fromfile(tmp_path / f"{name}.index.bin", "<i8") for name in ("train", "val")])
    assert sorted(kept.tolist()) == np.flatnonzero(rows["status"] == KEPT).tolist()
