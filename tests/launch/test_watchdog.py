"""The watchdog against real processes that hang, die, stop or end well."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from swiftlet import hang as hangs
from swiftlet import heartbeat, watchdog
from swiftlet.hang import Pace, find_hang
from swiftlet.heartbeat import Beat, End

# One after the other: the search for orphans would find the ranks of a test that runs beside it.
pytestmark = pytest.mark.xdist_group("watchdog")

# Starts two ranks that beat like a training run; rank 1 does what it is told at step 3.
LAUNCHER = """
import os, subprocess, sys
RANK = '''
import os, signal, sys, time
from swiftlet import heartbeat
what, rank = sys.argv[1], int(os.environ["RANK"])
stopped = []
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda *_: stopped.append(1))
with heartbeat.answering():
    heartbeat.beat("load")
    for step in range(1, 1000):
        heartbeat.beat("step", step)
        if stopped:
            heartbeat.end(143, "stopped")
            sys.exit(143)
        if what == "well" and step == 5:
            heartbeat.beat("end", step)
            sys.exit(0)
        if what == "late" and step == 30:
            heartbeat.beat("end", step)
            sys.exit(0)
        if step == 3 and rank == 1:
            if what == "hang":
                time.sleep(600)
            if what == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if what == "busy":
                while True: pass
            if what == "say":
                heartbeat.end(6, "loss is not finite")
                sys.exit(1)
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.6 if what != "well" and rank == 0 and step == 3 else 0.1)
'''
start = [sys.executable, "-c", RANK, sys.argv[1]]
ranks = [subprocess.Popen(start, env={**os.environ, "RANK": str(rank)}) for rank in (0, 1)]
while all(rank.poll() is None for rank in ranks):
    import time; time.sleep(0.05)
if sys.argv[1] in ("say", "die"):
    time.sleep(0.4); [rank.kill() for rank in ranks]
sys.exit(max(abs(rank.wait()) for rank in ranks))
"""


def run(tmp_path, what, timeout_s=1.5):
    command = [sys.executable, "-c", LAUNCHER, what]
    started = time.monotonic()
    code = watchdog.watch(
        command, folder=tmp_path, environ=dict(os.environ), ranks=(0, 1), hang_timeout_s=timeout_s
    )
    pids = [beat.pid for beat in heartbeat.read_beats(tmp_path)]
    return code, time.monotonic() - started, pids


def is_running(pid):
    status = f"/proc/{pid}/status"
    return os.path.exists(status) and "State:\tZ" not in open(status).read()


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(watchdog, "warning", lines.append)
    return lines


def test_a_run_that_ends_well(tmp_path, said):
    assert run(tmp_path, "well")[0] == 0
    assert said == []


def test_a_clock_that_is_set_ahead_makes_no_rank_look_silent(tmp_path, said, monkeypatch):
    jumping = itertools.count(time.time(), 7200).__next__
    clocks = SimpleNamespace(time=jumping, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(watchdog, "time", clocks)
    assert run(tmp_path, "well", 60)[0] == 0
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    heartbeat.beat("tokenise")
    (beat,) = [beat for beat in heartbeat.read_beats(tmp_path) if beat.rank == 0]
    assert abs(beat.time_s - time.monotonic()) < 60, "the clock of the watchdog"
    assert said == []


@pytest.mark.parametrize("what", ["hang", "stop", "busy"])
def test_a_rank_without_progress_is_named_and_everything_is_ended(tmp_path, said, what, capfd):
    code, seconds, pids = run(tmp_path, what)
    assert code == 1
    assert seconds < 25
    assert said[0].startswith("rank 1 shows no progress for ")
    held = ": it was stopped, by SIGSTOP or a debugger" if what == "stop" else ""
    assert f"in phase step, step 3 (limit 2 s){held}; the run is ended" in said[0]
    assert watchdog.GO_ON in capfd.readouterr().err
    assert "stacks of rank 0:" in said[0]
    assert 'File "<string>"' in said[0]
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def test_the_exit_code_is_that_of_the_rank_that_failed_first(tmp_path, said):
    assert run(tmp_path, "say", 30)[0] == 6


def test_a_rank_that_dies_without_a_word_is_named(tmp_path, said):
    code, _, pids = run(tmp_path, "die", 30)
    assert code == 1
    assert said == [
        "the run ended without a word: rank 1 in phase step, step 3 first; its launcher's exit code is 9"
    ]
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_request_to_stop_is_passed_on_and_every_rank_leaves(tmp_path, said, number):
    def stop():
        until = time.monotonic() + 60
        while len(heartbeat.read_beats(tmp_path)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), number)
        if number == signal.SIGHUP:  # by the kernel, then by the shell
            os.kill(os.getpid(), number)
        if number == signal.SIGUSR1:  # a scheduler's notice, then its request
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert run(tmp_path, "none", 60)[0] == 143


def test_a_rank_that_is_asked_for_its_stacks_before_it_answers_lives_on(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as rank:
        assert watchdog.stacks(tmp_path, [Beat(0, rank.pid, "start", 0, 0.0)]) == {0: watchdog.SILENT}
        rank.communicate(b"\n")
    assert rank.returncode == 0


@pytest.mark.parametrize(
    "numbers, text",
    [
        ([signal.SIGTERM] * 2, "ended at once by signal 15, the second one; "),
        ([signal.SIGQUIT], "ended at once by signal 3; "),
    ],
)
def test_a_second_signal_or_ctrl_backslash_ends_at_once_ranks_that_cannot_hear_it(
    tmp_path, said, capfd, numbers, text
):
    def stop():
        until = time.monotonic() + 60
        while [beat.step for beat in heartbeat.read_beats(tmp_path)] != [3, 3] and time.monotonic() < until:
            time.sleep(0.05)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    threading.Thread(target=stop).start()
    code, seconds, pids = run(tmp_path, "stop", 120)
    assert code == 128 + numbers[-1]
    assert seconds < 60
    assert not any(is_running(pid) for pid in pids)
    assert text + watchdog.GO_ON in capfd.readouterr().err


def test_ranks_do_not_go_on_when_everybody_who_watches_them_is_killed(tmp_path):
    environ = {**os.environ, heartbeat.VARIABLE: str(tmp_path)}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, "none"], env=environ)
    until = time.monotonic() + 60
    while len(heartbeat.read_beats(tmp_path)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    while len(ends := heartbeat.read_ends(tmp_path)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert [end.exit_code for end in ends] == [143, 143]


def test_a_long_evaluation_is_legal_and_the_last_rank_is_to_blame():
    pace = Pace()
    pace.see([Beat(0, 1, "step", 1, 0.0), Beat(1, 2, "step", 1, 0.0)])
    pace.see([Beat(0, 1, "step", 2, 10.0), Beat(1, 2, "step", 2, 10.0)])
    assert pace.limit_s(Beat(0, 1, "step", 2, 10.0)) == 200.0
    assert find_hang([Beat(0, 1, "eval", 2, 10.0)], pace, 1000.0) is None
    beats = [Beat(0, 1, "step", 7, 50.0), Beat(1, 2, "step", 6, 49.0)]
    assert find_hang(beats, pace, 60.0) is None
    assert find_hang(beats, pace, 300.0).culprit.rank == 1


def test_heartbeats_cost_nothing_and_write_nothing_when_off(tmp_path, monkeypatch):
    monkeypatch.delenv(heartbeat.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    heartbeat.beat("step", 1)
    heartbeat.end(1, "x")
    with heartbeat.answering():
        assert list(tmp_path.iterdir()) == []


def test_a_tick_repeats_the_last_beat_without_looking_at_others(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    monkeypatch.setattr(heartbeat, "read_beats", None)
    heartbeat.beat("eval", 9)
    before = (tmp_path / "rank-0.json").read_text()
    heartbeat.tick()
    assert (tmp_path / "rank-0.json").read_text() == before
    monkeypatch.setattr(heartbeat, "TICK_S", -1.0)
    heartbeat.tick()
    after = (tmp_path / "rank-0.json").read_text()
    assert after != before and '"phase": "eval", "step": 9' in after


def test_beats_and_last_words_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    heartbeat.beat("save", 9)
    heartbeat.end(5, "disk full")
    (beat,) = heartbeat.read_beats(tmp_path)
    assert (beat.rank, beat.phase, beat.step) == (3, "save", 9)
    (end,) = heartbeat.read_ends(tmp_path)
    assert end[:3] == End(3, 5, "disk full", 0.0)[:3]
    assert watchdog.tell_end([end], 1) == 5


def test_a_folder_that_takes_no_signs_of_life_costs_a_warning(tmp_path, monkeypatch, capfd):
    gone = tmp_path / "gone"
    monkeypatch.setenv(heartbeat.VARIABLE, str(gone))
    heartbeat.beat("step", 1)
    heartbeat.beat("step", 2)
    heartbeat.end(6, "error: loss is not finite")
    said = capfd.readouterr().err
    assert (
        said.count(f"no sign of life can be written to {gone}: No such file or directory; the run goes on")
        == 1
    )
    assert "rank 0: error: loss is not finite" in said
    assert not heartbeat.takes_signs(gone)  # nobody could write to it until now
    assert heartbeat.takes_signs(gone)
    monkeypatch.setattr(heartbeat, "PROBE", "absent/probe")
    assert not heartbeat.takes_signs(gone)


def test_ranks_that_cannot_be_heard_are_not_silent(tmp_path, said):
    def remove():
        until = time.monotonic() + 60
        while len(heartbeat.read_beats(tmp_path / "beats")) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        shutil.rmtree(tmp_path / "beats")

    (tmp_path / "beats").mkdir()
    threading.Thread(target=remove).start()
    assert run(tmp_path / "beats", "late")[0] == 0
    assert said == []


def test_a_run_that_was_suspended_whole_goes_on(tmp_path, said, monkeypatch):
    pauses = iter([3.0])

    def sleep(seconds):
        pids = [beat.pid for beat in heartbeat.read_beats(tmp_path) if beat.step >= 3]
        pause = next(pauses, 0.0) if len(pids) == 2 else 0.0
        for pid in pids if pause else ():
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds + pause)
        for pid in pids if pause else ():
            os.kill(pid, signal.SIGCONT)

    monkeypatch.setattr(hangs, "SUSPENDED_S", 2.0)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    assert run(tmp_path, "late")[0] == 0
    assert next(pauses, None) is None, "it was suspended"
    assert said == []


def test_a_log_that_cannot_be_read_hides_no_cause(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ASCEND_PROCESS_LOG_PATH", str(tmp_path))
    (tmp_path / "plog").mkdir()
    (tmp_path / "plog/plog-7_1.log").symlink_to(tmp_path / "rotated")
    os.mkfifo(tmp_path / "plog/plog-7_2.log")
    gone = [Beat(0, 7, "step", 3, 1.0)]
    assert watchdog.tell_end([End(0, 1, "KeyError: 'labels'", 1.0)], 1, gone=gone) == 1
    said = capfd.readouterr().err
    assert said.startswith("rank 0: KeyError: 'labels'\n")
    for name, reason in (("plog-7_1.log", "there is no such file"), ("plog-7_2.log", "is a named pipe")):
        assert f"{name} was not read: " in said and reason in said


def test_a_message_of_ours_is_not_explained_by_what_failed_after_it(capfd):
    closed = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:31379"
    ends = [End(0, 2, "error: process 7 on vm is already running in /x\nhint: wait for it", 1.0)]
    ends.append(End(1, 1, f"Traceback (most recent call last):\n{closed}", 2.0))
    assert watchdog.tell_end(ends, 1) == 2
    assert capfd.readouterr().err == f"rank 0: {ends[0].message}\nthen rank 1: {closed}\n"


def test_no_orphan_process_group(tmp_path_factory):
    """Only those of this session are looked for: another one may run beside it."""
    mark = f"{heartbeat.VARIABLE}={tmp_path_factory.getbasetemp()}/".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            is_mine = int(path.parent.name) != os.getpid() and mark in path.read_bytes()
            found += [path.parent.name] if is_mine else []
    assert found == []


WAITS = """Thread 0x1 (most recent call first):
  File "/x/threading.py", line 1 in run

Thread 0x2 (most recent call first):
  File "/x/site-packages/torch/distributed/distributed_c10d.py", line 9 in all_reduce
  File "/x/swiftlet/train/loop.py", line 1 in train
"""
WORKS = WAITS.replace("/x/site-packages/torch/distributed/distributed_c10d.py", "/x/swiftlet/models/head.py")


@pytest.mark.parametrize(
    ("texts", "rank"), [({0: WORKS, 1: WAITS}, 0), ({0: WAITS, 1: WORKS}, 1), ({0: WAITS, 1: WAITS}, 1)]
)
def test_at_the_same_step_the_one_that_waits_for_nobody_is_to_blame(texts, rank):
    beats = [Beat(0, 1, "step", 7, 50.0), Beat(1, 2, "step", 7, 49.9)]
    hang = find_hang(beats, Pace(hang_timeout_s=5), 60.0)
    assert hang.culprit.rank == 1
    assert hangs.blame(hang, beats, texts, 60.0).culprit.rank == rank


def test_a_rank_that_was_stopped_in_a_collective_is_to_blame_and_not_who_waits_longer():
    beats = [Beat(0, 1, "step", 7, 50.0), Beat(1, 2, "step", 7, 49.9)]
    hang = find_hang(beats, Pace(hang_timeout_s=5), 60.0)
    assert hang.culprit.rank == 1
    hang = hangs.blame(hang, beats, {0: WAITS, 1: WAITS}, 60.0, stopped=[0])
    assert (hang.culprit.rank, hang.is_stopped) == (0, True)


def test_a_rank_stopped_in_a_save_has_the_limit_of_a_step_from_then_on():
    """A save may last half an hour without a sign, but nobody needs to be stopped in it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            beats = [Beat(0, os.getpid(), "save", 4, 9.0), Beat(1, process.pid, "save", 4, 10.0)]
            pace = Pace(hang_timeout_s=5)
            for now_s, number, culprit in (
                (100.0, signal.SIGSTOP, None),
                (104.0, signal.SIGSTOP, None),
                (106.0, signal.SIGSTOP, 1),
                (107.0, signal.SIGCONT, None),
                (108.0, signal.SIGSTOP, None),
            ):
                os.kill(process.pid, number)
                while hangs.is_stopped(process.pid) != (number == signal.SIGSTOP):
                    time.sleep(0.01)
                pace.look(now_s)
                pace.see(beats)
                hang = find_hang(beats, pace, now_s)
                assert (hang and (hang.culprit.rank, hang.limit_s)) == (culprit and (culprit, 5)), now_s
            pace.look(200.0)  # the watchdog itself was suspended
            assert find_hang(beats, pace, 204.0) is None
        finally:
            process.kill()


def test_a_rank_that_never_shows_itself_is_named():
    beats = hangs.with_missing([Beat(0, 1, "start", 0, 100.0)], (0, 1), 100.0, {})
    assert find_hang(beats, Pace(), 200.0) is None
    hang = find_hang(beats, Pace(), 500.0)
    assert "phase start" in hangs.report_hang(hang, beats, {})
    assert {beat.rank for beat in beats} == {0, 1}
