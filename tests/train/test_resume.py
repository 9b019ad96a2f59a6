"""Finding the checkpoint to continue among broken ones, and refusing what belongs to another run."""

import errno
import json
import os
from pathlib import Path

import pytest

from swiftlet.errors import CheckpointError, SwiftletError, UsageError
from swiftlet.faults import damage
from swiftlet.train.loop import train
from swiftlet.train.manifest import Identity
from swiftlet.train.resume import (
    check_agreement,
    check_identity,
    choose_checkpoint,
    find_checkpoint,
    list_checkpoints,
    open_checkpoint,
    said_of,
    saved_steps,
    trusted_checkpoint,
)


@pytest.fixture
def saved(tmp_path, build_job):
    job = build_job(tmp_path / "run", num_steps=3)
    train(job.run, job.state)
    return tmp_path / "run"


FILES = ("model.safetensors", "optimizer-00001.safetensors", "trainer_state.json")
DAMAGES = [
    (name, action) for name in FILES for action in ("bitflip", "truncate", "zero_tail", "empty", "missing")
]
DAMAGES += [("MANIFEST.json", action) for action in ("truncate", "zero_tail", "empty", "missing")]


@pytest.mark.parametrize(("name", "action"), DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(saved, name, action, caplog):
    path = saved / "checkpoint-3" / name
    if action == "missing":
        path.unlink()
    elif action == "empty":
        path.write_bytes(b"")
    else:
        damage(path, action)
    assert find_checkpoint(saved).manifest.step == 2


def test_a_disk_that_fails_after_the_check_is_named(saved, monkeypatch):
    checkpoint = find_checkpoint(saved)
    monkeypatch.setenv("SWIFTLET_FAULT", "resume.read=eio")
    with pytest.raises(SwiftletError, match="checkpoint-3 cannot be read: Input/output error") as caught:
        checkpoint.read_state()
    assert "look at the disk" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 9}', '{"format": 1, "files": 3}', "[" * 100_000, '{"format": 1, "step": 1e999,'
     ' "world_size": 1, "data_hash": "", "base_model": "", "settings": {}, "version": "", "files": {}}'],
    ids=range(7),
)  # fmt: skip
def test_a_manifest_of_nonsense_is_no_manifest(saved, text):
    (saved / "checkpoint-3" / "MANIFEST.json").write_text(text)
    assert isinstance(open_checkpoint(saved / "checkpoint-3"), str)
    with pytest.raises(CheckpointError, match="MANIFEST.json"):
        trusted_checkpoint(saved / "checkpoint-3")


@pytest.mark.parametrize(
    "name", ["a\0b", "n" * 5000, "\ud800", "loop"], ids=["nul", "long", "surrogate", "loop"]
)
def test_a_name_that_no_file_can_have_is_damage(saved, name):
    folder = saved / "checkpoint-3"
    (folder / "loop").symlink_to("loop")
    rewrite(folder, lambda files: {**files, name: {"bytes": 1, "sha256": "0"}})
    assert " cannot be read: " in open_checkpoint(folder)
    assert find_checkpoint(saved).manifest.step == 2


def rewrite(folder, change):
    """Change what the manifest of a checkpoint says of its files."""
    path = folder / "MANIFEST.json"
    content = json.loads(path.read_text())
    content["files"] = change(content["files"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    ["optimizer-00002.safetensors", "chat_template.jinja", "additional_chat_templates/tool_use.jinja",
     "added_tokens.json", "config.json", "modeling_own.py"],
)  # fmt: skip
def test_a_file_that_readers_would_take_is_damage_where_the_manifest_lacks_it(saved, name):
    path = saved / "checkpoint-3" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert (
        open_checkpoint(path.parents[name.count("/")]) == f"{name} is not in MANIFEST.json: move it elsewhere"
    )
    assert find_checkpoint(saved).manifest.step == 2


def test_a_manifest_that_names_nothing_makes_no_checkpoint(saved):
    rewrite(saved / "checkpoint-3", lambda files: {})
    assert find_checkpoint(saved).manifest.step == 2


def test_files_that_nobody_reads_may_lie_in_a_checkpoint(saved):
    folder = saved / "checkpoint-3"
    (folder / "infer_result").mkdir()
    for name in (
        "README.md",
        "notes.txt",
        "scores.json",
        "infer_result/1.jsonl",
        "._model.safetensors",
        "a.bin",
    ):
        (folder / name).write_text("{}")
    assert find_checkpoint(saved).manifest.step == 3


def test_a_checkpoint_under_the_number_of_another_step_is_passed_over(saved):
    (saved / "checkpoint-1").rename(saved / "checkpoint-9")
    assert open_checkpoint(saved / "checkpoint-9") == "MANIFEST.json is of step 1: the folder was renamed"
    assert find_checkpoint(saved).manifest.step == 3


def test_a_checkpoint_of_the_model_alone_is_passed_over_while_there_are_others(saved):
    for step in (3, 2, 1):
        folder = saved / f"checkpoint-{step}"
        (folder / "trainer_state.json").unlink()
        rewrite(folder, lambda files: {name: files[name] for name in files if name != "trainer_state.json"})
        if step > 1:
            assert find_checkpoint(saved).manifest.step == step - 1
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(saved)
    assert caught.value.message.count("holds only the model (--save_only_model true)") == 3


def test_the_reason_names_file_and_hashes(saved):
    damage(saved / "checkpoint-3" / "model.safetensors", "bitflip")
    reason = open_checkpoint(saved / "checkpoint-3")
    assert reason.startswith("model.safetensors has sha256 ")
    assert ", expected " in reason


def test_all_broken_is_an_error_with_every_reason_never_a_fresh_start(saved):
    for step in (1, 2, 3):
        (saved / f"checkpoint-{step}" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(saved)
    assert caught.value.exit_code == 3
    assert caught.value.message.count("model.safetensors is missing") == 3


def test_a_file_that_leads_out_of_the_folder_is_refused(saved, tmp_path):
    outside = tmp_path / "outside"
    inside = saved / "checkpoint-3" / "model.safetensors"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert open_checkpoint(saved / "checkpoint-3") == "model.safetensors leads out of the checkpoint"


def test_the_newest_run_comes_first_whatever_its_steps(tmp_path, saved):
    for name, step in (("v0-20260101-000000", 90), ("v2-20260101-000001", 5), ("v10-20260101-000002", 1)):
        (tmp_path / "m" / name / f"checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "m" / "v10-20260101-000002" / "checkpoint-x").mkdir()
    found = [path.parent.name.split("-")[0] for path in list_checkpoints(tmp_path / "m")]
    assert found == ["v10", "v2", "v0"]


def unlistable(monkeypatch, *names, number=errno.EIO):
    """Let the folders of these names fail when they are listed, as on a bad disk."""
    scandir = os.scandir

    def scan(path="."):
        if Path(path).name in names:
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_a_checkpoint_that_cannot_be_listed_is_passed_over_and_named(saved, monkeypatch, caplog):
    unlistable(monkeypatch, "checkpoint-3")
    reason = open_checkpoint(saved / "checkpoint-3")
    assert reason == "the folder cannot be listed: Input/output error"
    assert find_checkpoint(saved).manifest.step == 2


def test_a_folder_below_that_cannot_be_listed_is_named_and_hides_no_other(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("swiftlet.log.warning", said.append)
    for name in ("v0-20260101-000000", "v1-20260101-000001", ".tmp-4-abc"):
        (tmp_path / name / "checkpoint-4").mkdir(parents=True)
    unlistable(monkeypatch, "v1-20260101-000001", ".tmp-4-abc")
    assert list_checkpoints(tmp_path) == [tmp_path / "v0-20260101-000000" / "checkpoint-4"]
    (line,) = said
    assert "v1-20260101-000001 cannot be listed: Input/output error; checkpoints in it are not seen" in line
    monkeypatch.undo()
    unlistable(monkeypatch, "v1-20260101-000001", number=errno.ENOENT)  # a live run has just removed it
    assert list_checkpoints(tmp_path) == [tmp_path / "v0-20260101-000000" / "checkpoint-4"]


def test_a_folder_that_cannot_be_listed_is_never_taken_for_an_empty_one(saved, monkeypatch):
    unlistable(monkeypatch, saved.name)
    with pytest.raises(CheckpointError, match="cannot be listed: Input/output error"):
        choose_checkpoint("auto", saved)


def test_what_can_be_asked_for(saved, tmp_path):
    assert choose_checkpoint("auto", saved).manifest.step == 3
    assert choose_checkpoint(str(saved), saved).manifest.step == 3
    assert choose_checkpoint(str(saved / "checkpoint-1"), saved).manifest.step == 1
    assert choose_checkpoint("auto", tmp_path / "nothing") is None
    (tmp_path / "empty").mkdir()
    for asked in (tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            choose_checkpoint(str(asked), saved)
    os.truncate(saved / "checkpoint-1" / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match="model.safetensors has 10 bytes, expected"):
        choose_checkpoint(str(saved / "checkpoint-1"), saved)


def test_a_checkpoint_is_found_where_it_lies_however_it_is_named(saved, tmp_path, monkeypatch):
    (tmp_path / "latest").symlink_to(saved / "checkpoint-1")
    monkeypatch.chdir(saved / "checkpoint-1")
    for asked in (str(tmp_path / "latest"), ".", "../checkpoint-1"):
        assert choose_checkpoint(asked, saved).path == saved / "checkpoint-1"


def test_another_identity_is_refused_unless_told_which_one_rank_says(saved, monkeypatch):
    said = []
    monkeypatch.setattr("swiftlet.log.warning", said.append)
    checkpoint = open_checkpoint(saved / "checkpoint-3")
    check_identity(checkpoint, Identity("data", "base", {"lr": 1e-2}), is_override=False)
    other = Identity("other data", "base", {"lr": 1e-3, "seed": 1})
    with pytest.raises(CheckpointError) as caught:
        check_identity(checkpoint, other, is_override=False)
    for line in ("dataset: 'data' in the checkpoint", "lr: 0.01 in the checkpoint, 0.001 now", "seed: None"):
        assert line in caught.value.message
    assert "--resume_override true" in caught.value.hint
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        check_identity(checkpoint, other, is_override=True)
    assert len(said) == 1 and "although these differ:\n  dataset: 'data' in the checkpoint" in said[0]


def test_a_state_of_another_version_is_refused(saved):
    (saved / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3}')
    with pytest.raises(CheckpointError, match="was written by another version"):
        trusted_checkpoint(saved / "checkpoint-3").read_state()


def test_a_resumed_run_knows_the_checkpoints_before_it(saved):
    (saved / "checkpoint-2" / "MANIFEST.json").unlink()
    (saved / "checkpoint-x").mkdir()
    assert saved_steps(saved, 3) == [1, 3]
    assert saved_steps(saved, 2) == [1]


def test_processes_that_would_make_different_runs_are_stopped_before_they_mix(saved):
    one, other = Identity("data", "base", {"lr": 1e-2}), Identity("data 2", "base", {"lr": 1e-2})
    check_agreement([said_of(3, one), said_of(3, one)])
    with pytest.raises(UsageError, match="dataset is 'data' on rank 0, 'data 2' on rank 1\nhint: give every"):
        check_agreement([said_of(3, one), said_of(3, other)])
    with pytest.raises(
        UsageError, match="continues after is 3 on rank 0, 0 on rank 2\nhint: --output_dir must be on"
    ):
        check_agreement([said_of(3, one), said_of(3, one), said_of(0, one)])
