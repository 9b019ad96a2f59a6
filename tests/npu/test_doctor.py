"""The live checks of `swift doctor` on simulated NPUs, and a card of them that fails."""

from __future__ import annotations

import dataclasses
import os

import pytest

from swiftlet.doctor.live import check_live
from swiftlet.doctor.scene import look_around

pytestmark = pytest.mark.npu_sim


def live(environ, **variables):
    scene = look_around({**os.environ, **environ, **variables})
    return list(check_live(dataclasses.replace(scene), 240.0))


def test_each_npu_and_two_together_are_right():
    findings = live({"ASCEND_RT_VISIBLE_DEVICES": "0,1"})
    said = [(one.id, one.fields["check"], one.fields["device"]) for one in findings]
    assert said == [
        ("live.done", "matmul", "npu 0"),
        ("live.done", "bf16 attention", "npu 0"),
        ("live.done", "matmul", "npu 1"),
        ("live.done", "bf16 attention", "npu 1"),
        ("live.done", "all-reduce", "npu 0"),
    ]


def test_a_missing_library_is_explained():
    (finding,) = live({"ASCEND_RT_VISIBLE_DEVICES": "0"}, NPUSIM_FAULT="missing=libhccl.so")[:1]
    assert finding.id == "live.failed" and "set_env.sh" in finding.command("en"), finding
