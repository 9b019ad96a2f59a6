"""`swift doctor` as it is typed: text and JSON, languages, exit codes, logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

USUAL = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
USUAL |= {"COLUMNS": "200", "LANG": "C"}


@pytest.fixture
def swift(swift_here):
    return lambda *words, **environ: swift_here({**USUAL, **environ}, "doctor", *words)


def test_text_of_this_machine_and_its_time():
    began = time.monotonic()
    command = [sys.executable, "-m", "swiftlet.cli", "doctor", "--live", "false"]
    environ = {**USUAL, "ASCEND_LAUNCH_BLOCKING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert time.monotonic() - began < 10
    assert done.returncode in (1, 10), done.stderr
    assert "warning ASCEND_LAUNCH_BLOCKING=1 is for looking for errors" in done.stdout
    assert "    do: unset ASCEND_LAUNCH_BLOCKING" in done.stdout


def test_json_in_chinese(swift):
    done = swift("--live", "false", "--json", "true", "--lang", "zh", HCCL_RDMA_SL="9")
    report = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode == 1 and report["packages"]["torch"]
    (finding,) = [one for one in report["findings"] if one["id"] == "setting.range"]
    assert finding == {
        "id": "setting.range",
        "severity": "error",
        "cause": "HCCL_RDMA_SL=9 超出 0 到 7",
        "command": "unset HCCL_RDMA_SL",
    }


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "rank-3.log"
    path.write_text(
        "aclrtSetDevice, error code is 507033\nEL0004: Failed to allocate memory. token sk-abcdefgh12\n"
    )
    return path


def test_a_log_is_explained(swift, log):
    done = swift("--log", str(log))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cause: memory could not be allocated")
    assert f"shown by {log}:2:" in done.stdout and "look first at: rank 3" in done.stdout
    assert "sk-abcdefgh12" not in done.stdout
    assert swift("--log", str(log), LANG="zh_CN.UTF-8").stdout.startswith("原因: 内存申请失败")


def test_a_log_as_json_and_one_that_does_not_show_the_cause(swift, log):
    told = json.loads(swift("--log", str(log), "--json").stdout)
    assert told["id"] == "memory.device" and told["evidence"][0]["rank"] == "3"
    log.write_text("error code is 507018\n")
    done = swift("--log", str(log))
    assert done.returncode == 10 and "the log does not show the cause" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--log"], "--log has no value"),
        (["--log", "nowhere.log"], "--log nowhere.log: there is no such file"),
        (["--log", "x", "--live", "false"], "--live has no effect with --log"),
        (["--lang", "fr"], "--lang 'fr' is not known"),
        (["--live_timeout", "0"], "--live_timeout must be above 0"),
    ],
)
def test_mistakes(swift, words, message):
    done = swift(*words)
    assert done.returncode == 2 and message in done.stderr
