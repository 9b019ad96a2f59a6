"""F01 to F04, F07, F08, F32, F34 to F36: what a resumed run continues, and what it refuses to continue."""

from __future__ import annotations

import os
import signal

import pytest
from conftest import NUM_STEPS, SAVE_STEPS

POINTS = {"first step": 1, "between saves": 3, "a save": 4, "epoch end": 9, "last step": 12}


@pytest.mark.parametrize("step", POINTS.values(), ids=POINTS)
def test_f01_a_run_stopped_by_sigterm_and_resumed_equals_the_golden_run(runs, golden, step):
    stopped = runs.run(fault=f"opt:step={step}=term")
    is_last = step == NUM_STEPS
    assert stopped.code == (0 if is_last else 128 + signal.SIGTERM), stopped.text
    if not is_last:
        assert f"checkpoint-{step} is saved" in stopped.text
    resumed = runs.run(resume_from_checkpoint="auto")
    assert resumed.code == 0, resumed.text
    assert runs.hashes(NUM_STEPS) == golden.hashes(NUM_STEPS)
    assert runs.log_lines() == golden.log_lines()
    assert runs.drafts() == []
