"""A run that fails with an error of the device's software prints what it means, below its own last words."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from swiftlet import watchdog
from swiftlet.doctor.failure import explain_failure
from swiftlet.heartbeat import Beat, End

HOST_CODE = (
    "Traceback (most recent call last):\n  File x, line 1\n"
    "RuntimeError: NPU function error: aclrtSetDevice, error code is 507033\n"
    "[ERROR] 2026-01-01-10:00:02 (PID:7, Device:0, RankID:-1) ERR00100 PTA call acl api failed"
)


def test_the_watchdog_explains_what_ranks_said(capsys, monkeypatch):
    monkeypatch.setenv("LANG", "C")
    ends = [
        End(0, 1, "RuntimeError: EI0002: The wait execution times out. remote rank: [1]. rankId[0]", 1.0),
        End(1, 1, HOST_CODE + "\nEL0004: Failed to allocate memory.", 2.0),
    ]
    assert watchdog.tell_end(ends, 1) == 1
    said = capsys.readouterr().err
    assert "cause: memory could not be allocated" in said
    assert "look first at: rank 1, which shows the cause" in said and "do: npu-smi info" in said


def test_the_log_of_the_process_is_read_too(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "debug" / "plog"
    folder.mkdir(parents=True)
    (folder / "plog-4321_20260101.log").write_text(
        "[ERROR] DRV(4321,python):2026-01-01-10:00:01.000.000 halDeviceOpen failed. device_id=1, drvRetCode=7.\n"
    )
    monkeypatch.setenv("ASCEND_PROCESS_LOG_PATH", str(tmp_path))
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    gone = [Beat(0, 4321, "init", 0, 1.0)]
    assert watchdog.tell_end([End(0, 1, HOST_CODE, 2.0)], 1, (), gone) == 1
    said = capsys.readouterr().err
    assert "原因: 驱动拒绝打开设备 1" in said and "plog-4321_20260101.log:1" in said


def test_a_code_that_hides_its_cause_is_told_as_such():
    said = explain_failure({0: HOST_CODE}, {"LANG": "C"})
    assert "the log does not show the cause" in said and "507033: the device could not be started" in said


@pytest.mark.parametrize(
    "message",
    [
        "error: the dataset has no rows\nhint: check it",
        "ValueError: bad shape",
        "mytool.StrangeError: bad shape",
        "[W x.ts:6] Warning: driver version and firmware do not match\nValueError: bad shape",
        "",
    ],
)
def test_what_needs_no_explanation_gets_none(message):
    assert explain_failure({0: message}, {}) == ""


def test_an_exception_that_others_waited_for_is_named():
    wait = "RuntimeError: EI0002: The wait execution times out. remote rank: [1]. rankId[0]"
    said = explain_failure({0: wait, 1: "KeyError: 'labels'"}, {"LANG": "C"})
    assert (
        said.startswith("cause: the program ended with KeyError: 'labels'")
        and "look first at: rank 1" in said
    )


def test_a_broken_table_of_the_user_does_not_hide_the_failure(tmp_path):
    (tmp_path / "mine.json").write_text("{")
    said = explain_failure({0: HOST_CODE}, {"SWIFTLET_DOCTOR_DIR": str(tmp_path)})
    assert "mine.json is no table of the doctor" in said


def test_an_unwatched_command_explains_its_traceback():
    code = (
        "import sys, swiftlet.cli as cli\n"
        "def fail(argv): raise RuntimeError('ACL stream synchronize failed, error code:507018')\n"
        "cli.run_command = fail\nsys.exit(cli.main(['npu']))"
    )
    environ = {"PATH": os.environ["PATH"], "LANG": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 1
    assert "RuntimeError: ACL stream synchronize failed" in done.stderr
    assert "known: 507018: an operator on the AI CPU failed" in done.stderr
