"""A new run in the folder of an earlier one: nothing is lost, nothing mixes, and `auto` finds the run's own."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from run_files import lines
from swiftlet.commands.run_folder import VARIABLE, set_aside_former
from swiftlet.errors import CheckpointError, DataError, UsageError
from swiftlet.train.lock import locked
from swiftlet.train.manifest import revoke
from swiftlet.train.resume import choose_checkpoint, list_checkpoints
from swiftlet.train.state import parse_state


def rates(folder):
    return {line["learning_rate"] for line in lines(folder) if line.get("learning_rate")}


def names(paths):
    return sorted(path.name for path in paths)


def test_an_earlier_run_is_set_aside_whole_and_can_still_be_continued(fine_tune, plan_fault, capfd):
    folder = Path(fine_tune(lr_scheduler_type="constant", warmup_ratio=0).output_dir)
    (folder / "notes.txt").write_text("mine")
    plan_fault("opt:step=5=exc")
    other = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_ratio": 0}
    with pytest.raises(RuntimeError, match="injected at opt"):
        fine_tune(**other)
    (former,) = folder.glob("former-run-*")
    told = capfd.readouterr().err
    assert f"{folder} holds an earlier run, which is now in {former.name}" in told
    assert f"--resume_from_checkpoint {former} continues it" in told
    kept = {"checkpoint-3", "checkpoint-6", "logging.jsonl", "sft_args.json", "runs", "images"}
    assert kept == {path.name for path in former.iterdir()} - {".lock"}
    assert rates(former) == {1e-2}
    assert names(list_checkpoints(folder)) == ["checkpoint-3"]
    resumed = fine_tune(**other, resume_from_checkpoint="auto")
    assert resumed.num_steps == 6 and rates(folder) == {1e-3}
    assert (folder / "notes.txt").read_text() == "mine"
    again = {"lr_scheduler_type": "constant", "warmup_ratio": 0, "resume_from_checkpoint": str(former)}
    assert fine_tune(**again).last_checkpoint == str(former / "checkpoint-6")
    assert len(list(folder.glob("former-run-*"))) == 1


def test_a_run_that_does_not_begin_moves_nothing(fine_tune, tmp_path):
    folder = Path(fine_tune(max_steps=1).output_dir)
    before = names(folder.iterdir())
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    with pytest.raises(DataError):
        fine_tune(max_steps=1, dataset=str(bad))
    with locked(folder), pytest.raises(UsageError, match="already running in"):
        fine_tune(max_steps=1)
    assert set(names(folder.iterdir())) == {*before, "refused-bad_rows.jsonl"}


def test_the_bad_rows_of_an_earlier_run_stay_its_own(fine_tune, tmp_path, rows_file):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(rows_file).read_text("utf-8") + "{\n", "utf-8")
    skipping = {"max_steps": 1, "bad_rows": "skip", "max_bad_fraction": 0.5}
    folder = Path(fine_tune(**skipping, dataset=str(bad)).output_dir)
    told = (folder / "bad_rows.jsonl").read_text("utf-8")
    with locked(folder), pytest.raises(UsageError, match="already running in"):
        fine_tune(max_steps=1)
    bad.write_text("{\n", "utf-8")
    with pytest.raises(DataError):
        fine_tune(**skipping, dataset=str(bad))
    assert (folder / "bad_rows.jsonl").read_text("utf-8") == told
    fine_tune(max_steps=1)
    (former,) = folder.glob("former-run-*")
    assert (former / "bad_rows.jsonl").read_text("utf-8") == told
    assert not (folder / "bad_rows.jsonl").exists()


def test_a_full_disk_that_takes_no_bad_rows_is_named(fine_tune, tmp_path, rows_file, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(rows_file).read_text("utf-8") + "{\n", "utf-8")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UsageError, match=r"run/bad_rows\.jsonl cannot be written: No space left") as caught:
        fine_tune(max_steps=1, dataset=str(bad), bad_rows="skip", max_bad_fraction=0.5)
    assert caught.value.hint == "choose another --output_dir"


def test_a_process_of_a_run_leaves_its_folder_to_the_launcher(fine_tune, monkeypatch):
    folder = Path(fine_tune(max_steps=1).output_dir)
    monkeypatch.setenv(VARIABLE, str(folder))
    fine_tune(max_steps=1)
    assert not list(folder.glob("former-run-*"))


def test_a_folder_without_a_run_stays_as_it_is(tmp_path):
    (tmp_path / "runs").write_text("mine")
    set_aside_former(tmp_path)
    assert names(tmp_path.iterdir()) == ["runs"]


def test_a_folder_that_cannot_be_moved_is_named(fine_tune, monkeypatch):
    folder = Path(fine_tune(max_steps=1).output_dir)
    monkeypatch.setattr(
        Path, "rename", lambda *a: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    with pytest.raises(UsageError, match=f"{folder} cannot be written: Read-only file system"):
        set_aside_former(folder)


@pytest.fixture
def folders_of_an_image(monkeypatch):
    """What came with the image of a container: its files can be renamed, its folders cannot (overlayfs)."""
    rename = Path.rename

    def refuse(path, target):
        if path.is_dir() and path.name.startswith(("checkpoint-", "runs", "images")):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)


def test_a_run_that_came_with_the_image_of_a_container_is_set_aside(fine_tune, folders_of_an_image, capfd):
    folder = Path(fine_tune(max_steps=1).output_dir)
    again = fine_tune(max_steps=1, seed=7)
    (aside,) = folder.glob("former-run-*")
    assert choose_checkpoint(str(aside), folder).path == aside / "checkpoint-1"
    assert Path(again.last_checkpoint) == folder / "checkpoint-1"


def test_checkpoints_that_came_with_the_image_of_a_container_are_removed(
    fine_tune, folders_of_an_image, capfd
):
    options = {"max_steps": 4, "save_steps": 2, "save_total_limit": 1}
    folder = Path(fine_tune(**options).output_dir)
    assert names(folder.glob("checkpoint-*")) == ["checkpoint-4"]
    assert "could not be removed" not in capfd.readouterr().err


def test_a_kill_while_such_a_checkpoint_is_removed_leaves_none(tmp_path, folders_of_an_image):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    for name in ("MANIFEST.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    assert revoke(folder, tmp_path / ".tmp-prune-2") == folder
    assert names(folder.iterdir()) == ["adapter_model.safetensors"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "scandir", lambda *a: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(UsageError, match=f"{tmp_path} cannot be written: Input/output error"):
        set_aside_former(tmp_path)


def test_auto_passes_over_checkpoints_of_another_run(fine_tune, capfd):
    own = fine_tune(add_output_dir_suffix=True)
    newer = fine_tune(add_output_dir_suffix=True, learning_rate=1e-3)
    resumed = fine_tune(add_output_dir_suffix=True, resume_from_checkpoint="auto")
    assert resumed.last_checkpoint == own.last_checkpoint
    told = capfd.readouterr().err
    assert f"checkpoint passed over: {newer.last_checkpoint}: of another run, learning_rate: 0.001" in told
    with pytest.raises(
        CheckpointError, match=f"{newer.last_checkpoint} belongs to another run:\n  learning_rate"
    ):
        fine_tune(add_output_dir_suffix=True, learning_rate=1e-4, resume_from_checkpoint="auto")
    options = {"learning_rate": 1e-4, "resume_from_checkpoint": "auto", "resume_override": True}
    assert fine_tune(add_output_dir_suffix=True, **options).last_checkpoint == newer.last_checkpoint


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 4), ("sft_type", "full"), ("lora_dropout_p", 0.5)])
@pytest.mark.parametrize("is_override", [False, True])
def test_what_the_weights_follow_from_is_never_overridden(fine_tune, name, value, is_override):
    folder = Path(fine_tune(max_steps=1).output_dir)
    before = (folder / "sft_args.json").read_bytes()
    options = {"resume_from_checkpoint": "auto", "resume_override": is_override, name: value}
    with pytest.raises(CheckpointError, match=f"belongs to another run:\n(.*\n)*  {name}: ") as caught:
        fine_tune(max_steps=1, **options)
    assert f"the weights of a checkpoint fix {name}" in caught.value.hint
    assert "--resume_override" not in caught.value.hint
    assert (folder / "sft_args.json").read_bytes() == before, "the run refused has written nothing"


@pytest.mark.parametrize(("num_rows", "batch_size"), [(12, 4), (80, 4), (40, 2)])
def test_other_data_or_steps_have_a_schedule_of_their_own(
    fine_tune, rows_file, tmp_path, num_rows, batch_size
):
    """Ten steps an epoch become three or twenty, and each row is seen once an epoch."""
    rows = rows_file.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join((rows * 2)[:num_rows]), encoding="utf-8")
    settings = {
        "dataset_test_ratio": 0,
        "evaluation_strategy": "no",
        "save_strategy": "epoch",
        **dict.fromkeys(("eval_steps", "max_steps", "save_steps")),
    }
    fine_tune(num_train_epochs=1, **settings)
    settings |= {"dataset": str(tmp_path / "other.jsonl"), "batch_size": batch_size}
    settings["num_train_epochs"] = 30 * batch_size / num_rows
    again = fine_tune(resume_from_checkpoint="auto", resume_override=True, **settings)
    state = parse_state((Path(again.last_checkpoint) / "trainer_state.json").read_text("utf-8"))
    assert again.num_steps == state.num_steps == 30
    assert (state.step_size, state.steps_per_epoch) == (batch_size, num_rows // batch_size)
    assert (state.epoch, state.step_in_epoch) == divmod(30, state.steps_per_epoch)


def test_what_is_continued_is_chosen_when_no_run_changes_it_any_more(fine_tune, tmp_path, monkeypatch):
    """A run that was asked to stop still saves while the next one starts: it must not go on from what came before."""
    folder = Path(fine_tune(max_steps=6, save_steps=3).output_dir)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    with locked(folder), pytest.raises(UsageError, match="already running in"):
        fine_tune(resume_from_checkpoint="auto", dataset=str(bad))  # said before the data are read
    newest, aside = folder / "checkpoint-6", tmp_path / "aside"
    newest.rename(aside)
    choices = []

    def choose(*words):
        choices.append(choose_checkpoint(*words))
        if aside.exists():
            aside.rename(newest)
        return choices[-1]

    monkeypatch.setattr("swiftlet.commands.sft.choose_checkpoint", choose)
    fine_tune(max_steps=6, save_steps=3, resume_from_checkpoint="auto")
    assert [choice.path.name for choice in choices] == ["checkpoint-3", "checkpoint-6"]
