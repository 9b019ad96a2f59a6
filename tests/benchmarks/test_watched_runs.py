"""The harness sees steps, processor time and memory of a command and its children, and ends one that takes too long."""

from __future__ import annotations

import os
import sys

import pytest


@pytest.fixture
def harness():
    import peers
    import process

    return process, peers


def watched(process, tmp_path, code, limit_s=60.0):
    return process.run_watched(
        [sys.executable, "-u", "-c", code],
        environ=os.environ,
        folder=tmp_path,
        log=tmp_path / "log",
        limit_s=limit_s,
    )


def test_steps_of_ours_and_of_peers_are_seen_with_their_time(harness, tmp_path):
    process, peers = harness
    code = (
        "import time\n"
        "print('[1/3] loss 2.5 acc 0'); time.sleep(0.2)\n"
        "print('@step 2 1.5'); time.sleep(0.2); print('lost 3'); print('@step 3 5e-1')"
    )
    outcome = watched(process, tmp_path, code)
    assert outcome.code == 0
    assert [(mark["step"], mark["loss"]) for mark in outcome.marks] == [(1, 2.5), (2, 1.5), (3, 0.5)]
    found = peers.figures(outcome, 300, 0)
    assert found["loss"] == 1.5
    assert 0 < found["first_step_s"] < outcome.wall_s
    seconds = outcome.marks[-1]["wall_s"] - outcome.marks[0]["wall_s"]
    assert found["tokens_per_s"] == pytest.approx(200 / seconds)


def test_memory_of_children_counts(harness, tmp_path):
    process, _ = harness
    hold = "import time; x = bytearray(80_000_000); x[::4096] = x[::4096]; time.sleep(1.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    assert watched(process, tmp_path, code).peak_rss > 80_000_000


def test_a_run_that_takes_too_long_is_ended_with_its_children(harness, tmp_path):
    process, peers = harness
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    outcome = watched(process, tmp_path, code, limit_s=1.0)
    assert outcome.code != 0 and outcome.wall_s < 30
    assert "tokens_per_s" not in peers.figures(outcome, 300, 0)


def test_medians_leave_failed_rounds_out(harness):
    _, peers = harness
    summary = peers.medians(
        [{"code": 0, "wall_s": 3.0}, {"code": 1, "wall_s": 99.0}, {"code": 0, "wall_s": 5.0}]
    )
    assert (summary["rounds"], summary["failed"]) == (2, 1)
    assert summary["wall_s"] == {"median": 4.0, "min": 3.0, "max": 5.0}
