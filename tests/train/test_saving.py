"""Saving while training goes on: from a copy, one at a time, and a failure is known to the run."""

import errno
import shutil
import time
from types import SimpleNamespace

import pytest

from swiftlet import heartbeat
from swiftlet.errors import CheckpointError, SaveError, UsageError
from swiftlet.files import sha256
from swiftlet.train.checkpoint import SPARE_BYTES
from swiftlet.train.lock import locked
from swiftlet.train.loop import train
from swiftlet.train.resume import find_checkpoint, open_checkpoint
from swiftlet.train.state import parse_state


def hashes(folder):
    return {p.name: sha256(p) for p in sorted(folder.iterdir())}


def delay_writing(job, seconds=0.4):
    """Let rank 0 begin to write only after some steps; return what was on the disk after each step."""
    take, step, seen = job.run.saver.take_model, job.run.report.step, {}

    def slow(draft):
        rest = take(draft)
        return lambda: (time.sleep(seconds), rest())

    def note(state, num_tokens):
        step(state, num_tokens)
        seen[state.global_step] = sorted(p.name for p in job.run.saver.folder.glob("checkpoint-*"))

    job.run.saver.take_model, job.run.report.step = slow, note
    return seen


def test_steps_are_made_while_a_checkpoint_is_written_and_its_bytes_are_those_of_its_step(
    tmp_path, build_job
):
    quick = build_job(tmp_path / "quick")
    train(quick.run, quick.state)
    slow = build_job(tmp_path / "slow", save_every=2)
    seen = delay_writing(slow)
    train(slow.run, slow.state)
    assert seen[4] == [], "checkpoint-2 is still being written when step 4 is made"
    assert seen[6] == ["checkpoint-2"], "the save of step 4 waited for it"
    for step in (4, 6):
        mine, theirs = (tmp_path / name / f"checkpoint-{step}" for name in ("slow", "quick"))
        for name in ("model.safetensors", "optimizer-00001.safetensors"):
            assert sha256(mine / name) == sha256(theirs / name), (step, name)
    assert hashes(tmp_path / "slow" / "checkpoint-6") == hashes(tmp_path / "quick" / "checkpoint-6")


def test_no_step_is_made_that_a_kill_could_cost_beyond_the_interval_of_saves(
    tmp_path, build_job, monkeypatch
):
    job = build_job(tmp_path, save_every=2, most_lost=2)
    seen, beats = delay_writing(job), []
    monkeypatch.setattr(heartbeat, "beat", lambda *beat: beats.append(beat))
    train(job.run, job.state)
    assert beats[beats.index(("step", 3)) + 1 :][:2] == [("save", 2), ("step", 3)], "what it waits for"
    assert seen[2] == []
    assert seen[3] == seen[4] == ["checkpoint-2"], "the update of step 3 waited for it"
    assert seen[5] == ["checkpoint-2", "checkpoint-4"]


def newest(folder):
    """Return the step of the newest valid checkpoint; one that was listed may be pruned before it is opened."""
    try:
        return find_checkpoint(folder).manifest.step
    except CheckpointError:
        return find_checkpoint(folder).manifest.step


def test_there_is_always_a_valid_checkpoint(tmp_path, build_job):
    job = build_job(tmp_path, limit=1, evaluate_every=100)
    delay_writing(job, 0.05)
    step, found = job.run.report.step, []

    def note(state, num_tokens):
        step(state, num_tokens)
        if state.global_step > 2:
            found.append(newest(tmp_path))

    job.run.report.step = note
    train(job.run, job.state)
    assert found == sorted(found)
    assert len(found) == 4
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-6"]


@pytest.mark.parametrize("site", ["fsync", "rename"])
def test_a_failure_while_training_goes_on_is_said_tried_again_and_leaves_no_trace(
    tmp_path, build_job, plan_fault, site
):
    job = build_job(tmp_path, save_every=3, limit=-1)
    plan_fault(f"ckpt.{site}:step=3=enospc")
    step = job.run.report.step
    job.run.report.step = lambda state, num_tokens: (step(state, num_tokens), time.sleep(0.3))
    train(job.run, job.state)
    assert not (tmp_path / "checkpoint-3").exists()
    steps = sorted(int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*"))
    assert steps[0] == 4
    assert not list(tmp_path.glob(".tmp-*"))
    first = parse_state((tmp_path / f"checkpoint-{steps[0]}" / "trainer_state.json").read_text("utf-8"))
    assert (first.best_step, first.best_metric) == (0, None), "what was lost is not the best"


def test_a_failed_save_is_tried_again_after_one_two_and_four_steps_and_then_with_the_next(
    tmp_path, build_job
):
    job = build_job(tmp_path)
    saver, tried = job.run.saver, []

    def full(draft):
        raise OSError(errno.ENOSPC, "No space left on device")

    saver.take_model = full
    for step in range(1, 20):
        job.state.global_step = step
        if step == 1 or saver.is_retry_due(job.state):
            tried.append(step)
            assert saver.save(job.state) is None
    assert tried == [1, 2, 4, 8]
    assert list(tmp_path.glob(".tmp-*")) == []


def test_the_next_checkpoint_needs_the_space_of_the_last_and_a_little_more(tmp_path, build_job, monkeypatch):
    job = build_job(tmp_path)
    job.state.global_step = 1
    path = job.run.saver.save(job.state, is_final=True)
    needed = sum(entry["bytes"] for entry in open_checkpoint(path).manifest.files.values()) + SPARE_BYTES
    job.state.global_step = 2
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(SaveError, match="checkpoint-2 could not be written: 16 MiB are free on"):
        job.run.saver.save(job.state, is_final=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    assert job.run.saver.save(job.state, is_final=True).is_dir()


def test_a_failed_last_save_ends_the_run_with_its_reason(tmp_path, build_job, plan_fault):
    job = build_job(tmp_path, save_every=3)
    plan_fault("ckpt.manifest:step=6=enospc")
    with pytest.raises(SaveError, match="checkpoint-6 could not be written: No space left on device"):
        train(job.run, job.state)
    assert find_checkpoint(tmp_path).manifest.step == 3


def test_a_run_that_breaks_off_waits_for_the_checkpoint_under_way(tmp_path, build_job, plan_fault):
    job = build_job(tmp_path, save_every=2)
    delay_writing(job)
    plan_fault("opt:step=3=exc")
    with pytest.raises(RuntimeError, match="injected at opt"):
        train(job.run, job.state)
    assert open_checkpoint(tmp_path / "checkpoint-2").manifest.step == 2


def test_a_run_that_breaks_off_says_that_its_last_checkpoint_failed(
    tmp_path, build_job, plan_fault, monkeypatch
):
    said = []
    monkeypatch.setattr("swiftlet.log.warning", said.append)
    job = build_job(tmp_path, save_every=2)
    delay_writing(job)
    plan_fault("opt:step=3=exc;ckpt.fsync:step=2=eio")
    with pytest.raises(RuntimeError, match="injected at opt"):
        train(job.run, job.state)
    assert "the last checkpoint could not be written: Input/output error" in said


def test_a_checkpoint_removed_by_hand_does_not_count_as_kept(tmp_path, build_job):
    job = build_job(tmp_path, num_steps=3, limit=2, evaluate_every=1)
    job.state.best_step = 1
    saver = job.run.saver
    for step in (1, 2, 3):
        job.state.global_step = step
        saver.save(job.state, is_final=True)
        if step == 2:
            shutil.rmtree(saver.path(1))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert saver.kept_steps() == [2, 3]
    shutil.rmtree(saver.path(2))
    assert saver.kept_steps() == [3], "nor at the end, when the best and the last are named"


def test_a_folder_removed_during_the_run_is_made_again_and_what_is_trained_is_not_lost(
    tmp_path, build_job, monkeypatch
):
    said = []
    monkeypatch.setattr("swiftlet.log.warning", said.append)
    folder = tmp_path / "run"
    folder.mkdir()
    job = build_job(folder, num_steps=4, save_every=2)
    step = job.run.report.step

    def remove(state, num_tokens):
        step(state, num_tokens)
        if state.global_step == 3:
            job.run.saver.settle(state)  # nothing is being written into it
            shutil.rmtree(folder)

    job.run.report.step = remove
    job.run.report.events = None  # TensorBoard's file would have made it again
    with locked(folder):
        train(job.run, job.state)
        with pytest.raises(UsageError, match="is already running in"), locked(folder):
            pass
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not isinstance(open_checkpoint(folder / "checkpoint-4"), str)
    assert f"{folder} was removed: it is made again; what it held is gone" in said
