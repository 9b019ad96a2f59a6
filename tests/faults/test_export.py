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
from harness import Runs

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


def test_an_export_killed_while_it_replaces_an_earlier_one_loses_neither(runs, stopped_at_8):
    """The earlier model is named where it is missed, and is back at the next export or merge, also beside a run."""
    shutil.copytree(stopped_at_8, runs.output)
    checkpoint, merged = runs.output / "checkpoint-8", runs.output / MERGED
    training, runs.options = runs.options, {"ckpt_dir": checkpoint, "device": "cpu", "merge_lora": "true"}
    assert runs.run("export").code == 0
    (merged / "mark").touch()
    killed = runs.run("export", overwrite="true", fault="export.replace=kill9")
    assert killed.code == -signal.SIGKILL
    assert not merged.exists()
    asked = {
        "merge_lora": None,
        "dataset": training["dataset"],
        "show_dataset_sample": 1,
        "max_new_tokens": 2,
    }
    missing = runs.run("infer", **{**asked, "ckpt_dir": merged})
    assert missing.code == 2
    assert (
        f"hint: a swift export that replaced it was killed; type mv {runs.output}/.replaced-" in missing.text
    )
    again = Runs(runs.folder, training, runs.environ).run(resume_from_checkpoint="auto")
    assert again.code == 0, again.text
    answered = runs.run("infer", **{**asked, "merge_lora": "true"})
    assert answered.code == 0, answered.text
    assert "was killed: the earlier merged model is back" in answered.text
    assert (merged / "mark").exists()
    assert runs.run("export", overwrite="true").code == 0
    check_whole(merged)
    assert not (merged / "mark").exists()
    assert [path.name for path in runs.output.glob(".*")] == []


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
