"""F49: an export that is killed at any instant leaves a whole model or none, and nothing behind after the next one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
from cases import repeat

from swiftlet.models.safety import read_header

MERGED = "checkpoint-8-merged"


def check_whole(folder):
    """Check that a merged model is complete: its proof, its config, and weights of the size that they say."""
    proof = json.loads((folder / "merge_proof.json").read_text("utf-8"))
    assert proof["max_difference"] <= proof["tolerance"]
    assert (folder / "config.json").is_file()
    assert read_header(folder / "model.safetensors")


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f49_a_killed_export_leaves_a_whole_model_or_none(runs, stopped_at_8, number):
    shutil.copytree(stopped_at_8, runs.output)
    runs.options = {
        "ckpt_dir": runs.output / "checkpoint-8",
        "device": "cpu",
        "merge_lora": "true",
        "overwrite": "true",
    }
    merged = runs.output / MERGED
    first = runs.run("export")
    assert first.code == 0, first.text
    if number % 2:
        shutil.rmtree(merged)
    run = runs.start("export")
    run.kill_after(random.Random(number).uniform(0.3, 1.0) * first.seconds)
    assert run.wait().code in (0, -signal.SIGKILL)
    if merged.exists():
        check_whole(merged)
    done = runs.run("export")
    assert done.code == 0, done.text
    check_whole(merged)
    assert runs.drafts() == []
    assert runs.valid_steps() == [4, 8]


def test_an_export_that_is_asked_to_stop_leaves_nothing(runs, stopped_at_8):
    shutil.copytree(stopped_at_8, runs.output)
    runs.options = {"ckpt_dir": runs.output / "checkpoint-8", "device": "cpu", "merge_lora": "true"}
    run = runs.start("export")
    until = time.monotonic() + 120
    while not runs.drafts() and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGTERM)
    done = run.wait()
    assert done.code == 143, done.text
    assert "stopped by signal 15" in done.text
    assert runs.drafts() == []
    assert not (runs.output / MERGED).exists()
