"""The live checks run for real, in processes of their own, on what this machine has: processors."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from machines import write

from swiftlet.doctor import live, live_child
from swiftlet.doctor.live import check_live
from swiftlet.doctor.scene import Scene


@pytest.fixture
def scene(tmp_path):
    """A machine without accelerators."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return Scene({**environ, "OMP_NUM_THREADS": "1"}, tmp_path)


def test_a_matmul_attention_and_an_all_reduce_are_right(scene):
    said = [(one.id, one.fields["check"]) for one in check_live(scene, 120.0)]
    assert said == [("live.done", "matmul"), ("live.done", "bf16 attention"), ("live.done", "all-reduce")]


def test_a_check_that_does_not_end_is_named(scene):
    findings = list(check_live(scene, 0.01))
    assert {one.id for one in findings} == {"live.hangs"}
    assert "the start of a process did not end within 0 s" in findings[0].cause("en")


@pytest.mark.parametrize(
    ("states", "found"),
    [(["begins", "right"], ["live.done"]), (["begins"], ["live.hangs"]), ([], ["live.hangs"])],
)
def test_only_a_check_that_has_not_ended_hangs(tmp_path, states, found):
    facts = {"check": "matmul", "device": "cpu 0", "difference": 0.0, "seconds": 1.0}
    output = write(
        tmp_path / "out", "".join(json.dumps({**facts, "state": state}) + "\n" for state in states)
    )
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.kill()
    process.wait()
    job = live.Job(process, output, write(tmp_path / "err"))
    assert [one.id for one in live._findings(job, 60.0)] == found


def test_a_torch_that_cannot_be_imported_is_explained(scene, tmp_path):
    write(
        tmp_path / "fake/torch/__init__.py", "raise ImportError('libhccl.so: cannot open shared object file')"
    )
    broken = dataclasses.replace(scene, environ={**scene.environ, "PYTHONPATH": str(tmp_path / "fake")})
    findings = list(check_live(broken, 60.0))
    assert findings[0].id == "live.failed"
    assert "libhccl.so is not on the search path" in findings[0].cause("en")
    assert findings[0].command("en") == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


def test_wrong_numbers_and_those_that_are_not_finite_are_told(capsys):
    import torch

    live_child._try("matmul", "cpu 0", lambda: (0.5, 0.1))
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["begins", "wrong"]
    assert live_child._difference(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])) == float("inf")
    assert live_child._difference(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0])) == pytest.approx(0.1)


@pytest.mark.parametrize("check", [live_child.matmul, live_child.attention])
def test_a_device_that_computes_as_it_should_is_within_the_limit(check):
    import torch

    difference, limit = check(torch.device("cpu"))
    assert difference <= limit / 2
