"""What launchers say of their processes: who failed first, what they killed after that, whose line one is."""

from __future__ import annotations

import pytest
from explaining import cause_of, explained

from swiftlet.doctor.levels import WARNING
from swiftlet.doctor.logs import lines_of
from swiftlet.doctor.wording import look_at

PROCESS = "[{0}]:\n  time      : {1}\n  rank      : {2} (local_rank: {2})\n  exitcode  : {3} (pid: 7)\n"
KILLED = "  error_file: <N/A>\n  traceback : Signal 9 (SIGKILL) received by PID 7\n"
ROOT = "------\nRoot Cause (first observed failure):\n"


def summary(code, later=-9):
    """Return torchrun's: rank 1 failed first, and rank 0 was ended half a minute later."""
    failures = "Failures:\n" + PROCESS.format(1, "13:03:29", 0, later) + (KILLED if later == -9 else "")
    return failures + ROOT + PROCESS.format(0, "13:02:58", 1, code)


def test_a_process_that_the_launcher_killed_after_the_first_failure_is_no_cause():
    found = explained(summary(1))
    assert found.first.cause.id == "system.killed_child" and "rank 1" in look_at(found, "en")
    assert cause_of("[rank1]: KeyError: 'hidden'\n" + summary(1)) == "program.exception"
    assert cause_of("[rank1]: EI0002: a Notify wait timed out\n" + summary(1)) == "collective.waited"
    assert cause_of(summary(1, later=-6)) == "system.killed_child"


def test_a_process_that_was_killed_first_is_one():
    assert cause_of(summary(-9, later=-15)) == "memory.host_killed"
    assert cause_of(summary(-9)) == "memory.host_killed"
    assert cause_of(summary(-11)) == "system.crashed_child"
    # without the end of the summary nobody knows better
    assert cause_of(summary(-9).partition(ROOT)[0]) == "memory.host_killed"


@pytest.mark.parametrize(
    ("code", "cause"), [(1, "killed_child"), (-9, "host_killed"), (-11, "crashed_child")]
)
def test_of_many_processes_the_first_that_failed_is_named(code, cause):
    failures = "".join(PROCESS.format(number, "13:03:29", number + 9, -9) + KILLED for number in range(64))
    found = explained("Failures:\n" + failures + ROOT + PROCESS.format(0, "13:02:58", 7, code))
    assert found.first.cause.id.endswith(cause) and "rank 7" in look_at(found, "en")


@pytest.mark.parametrize(
    "error", ["[rank2]: NPU error, error code is 507015", "x.Strange: see the log of the worker"]
)
def test_that_a_process_ended_hides_no_error_that_tells_more(error):
    traceback = 'Traceback (most recent call last):\n  File "a.py", line 7, in f\n    g()\n'
    for ended in (
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        "Sending process 7 closing signal SIGTERM",
        "[rank7]: exits with return code = -11",
    ):
        assert cause_of(ended) != "unknown"
        assert cause_of(f"{traceback}{error}\n{ended}") == "unknown"


def test_a_run_that_was_stopped_from_outside():
    stopped = "x.SignalException: Process 7 got signal: 1"
    assert "terminal" in explained(stopped).first.cause.words["en"]
    assert cause_of(f"NPU error, error code is 507015\n{stopped}") == "unknown"
    assert cause_of(f"{stopped}\nNPU error, error code is 507899") == "system.stopped"
    assert (
        cause_of("[WARNING] Received Signals.SIGHUP death signal, shutting down workers") == "system.stopped"
    )
    assert cause_of(f"NPU out of memory\n{stopped}") == "memory.torch_short"


@pytest.mark.parametrize(
    ("head", "rank"),
    [
        ("[default3]:", "3"),
        ("[1,3]<stderr>:", "3"),
        ("[2026-01-01 10:00:00 TP3] ", "3"),
        ("[2026-01-01 10:00:00 DP1 TP3 EP3] ", "3"),
        ("[2026-01-01 10:00:00] TP3 ", None),
        ("[1,3] ", None),
        ("[node3]:", None),
    ],
)
def test_ranks_that_launchers_put_before_a_line(head, rank):
    assert [line.rank for line in lines_of(f"{head}KeyError: 'a'")] == [rank]


def test_the_rest_of_a_record_is_of_the_rank_in_its_first_line():
    record = (
        "[rank{0}]:[W1031 21:35:04.838006795 compiler_depend.ts:57] Warning: EZ9999: Inner Error!\n"
        "EZ9999: [PID: 9{0}] 2026-01-01-10:00:00 The error from device(chipId:7, dieId:0)\n"
        "       errorStr: The MPU address access is invalid.\n"
    )
    later = "[ERROR] HCCL(92,python):2026-01-01-10:00:01.1 [a.cc:1] b\n"
    lines = lines_of(record.format(2) + "a line of the launcher\n" + record.format(5) + later)
    assert [line.rank for line in lines[:8]] == ["2", "2", "2", None, "5", "5", "5", "2"]
    assert look_at(explained(record.format(3)), "en") == "rank 3, which shows the cause"


def test_a_rank_behind_its_role_is_that_of_the_line():
    lines = lines_of(
        "wait socket establish timeout, role[1] rank[10] timeout[130]\nclient : device[2] rank[2] a"
    )
    assert [line.rank for line in lines] == ["10", "2"]


def test_a_warning_behind_the_rank_is_a_warning():
    assert [line.level for line in lines_of("[default3]:[W1117 11:40:21.5 a.ts:5] Warning: a")] == [WARNING]
