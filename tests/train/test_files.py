"""Lock, log, events, pictures, optimizer files and the save that meets a folder in its way."""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from swiftlet.errors import SaveError, UsageError
from swiftlet.files import sync
from swiftlet.train import events, plots
from swiftlet.train.checkpoint import check_space, superfluous
from swiftlet.train.lock import drafting, keep_owned, locked
from swiftlet.train.loop import train
from swiftlet.train.manifest import saving
from swiftlet.train.progress import short_time
from swiftlet.train.report import Forecast, build_report, forget_after, has_summary
from swiftlet.train.run import Every
from swiftlet.train.state import TrainState
from swiftlet.train.statefile import open_optimizer, write_optimizer
from swiftlet.train.summary import summarise


def hold(folder, ready, leave):
    with locked(folder):
        ready.set()
        leave.wait(30)
        os._exit(9)


def test_a_second_run_in_a_folder_is_refused_and_a_dead_owner_is_not_in_the_way(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, leave = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(60)
    with (
        pytest.raises(UsageError, match=f"process {process.pid} on .* is already running in"),
        locked(tmp_path),
    ):
        pass
    leave.set()
    process.join(30)
    (tmp_path / ".tmp-5-abc").mkdir()
    with locked(tmp_path):
        assert not (tmp_path / ".tmp-5-abc").exists(), "drafts of a killed run are removed"
    assert not (tmp_path / ".lock").exists()


def test_a_lock_whose_file_is_removed_is_taken_again_unless_another_run_was_first(tmp_path):
    folder = tmp_path / "run"
    spawn = multiprocessing.get_context("spawn")
    ready, leave = spawn.Event(), spawn.Event()
    with locked(folder):
        (folder / ".lock").unlink()
        folder.rmdir()
        folder.mkdir()
        keep_owned(folder)
        with (
            pytest.raises(UsageError, match=f"process {os.getpid()} on .* is already running"),
            locked(folder),
        ):
            pass
        (folder / ".lock").unlink()
        process = spawn.Process(target=hold, args=(folder, ready, leave))
        process.start()
        assert ready.wait(60)
        with pytest.raises(UsageError, match=f"process {process.pid} on .* is already running in"):
            keep_owned(folder)
    assert (folder / ".lock").exists(), "the lock of the other run stays"
    leave.set()
    process.join(30)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="cannot be written: Not a directory"),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_disk_without_a_free_byte_is_named_and_no_lock_stays(tmp_path, monkeypatch):
    def full(descriptor, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("swiftlet.train.lock.os.write", full)
    with (
        pytest.raises(
            UsageError, match="cannot be written: No space left on device\nhint: choose another --output_dir"
        ),
        locked(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_changes_any_more_does_not_hide_how_the_run_ended(tmp_path, monkeypatch):
    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with pytest.raises(SaveError, match="checkpoint-4"), locked(tmp_path):
        monkeypatch.setattr(Path, "unlink", read_only)
        raise SaveError("checkpoint-4 could not be written: Read-only file system")
    monkeypatch.undo()
    with locked(tmp_path):
        pass


def test_a_folder_is_flushed_where_the_file_system_can_and_a_file_always(tmp_path, monkeypatch):
    number = errno.EINVAL

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("swiftlet.files.os.fsync", refuse)
    (tmp_path / "file").touch()
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), SafetensorError("No space left (os error 28)")]
)
def test_what_a_disk_does_not_take_is_a_save_error(tmp_path, error):
    with (
        pytest.raises(SaveError, match="model could not be written: No space left"),
        saving(tmp_path / "model"),
    ):
        raise error
    (tmp_path / "file").touch()
    with (
        pytest.raises(SaveError, match="file could not be written: Not a dir"),
        drafting(tmp_path / "file" / "draft"),
    ):
        pass


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = events.event_file(tmp_path)
    for step in (1, 2, 300):
        events.append_scalars(path, step, {"train/loss": step / 2, "train/acc": 0.5})
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [
        (1, 0.5),
        (2, 1.0),
        (300, 150.0),
    ]


def test_tensorboard_forgets_the_steps_that_a_resumed_run_repeats(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for pid, (first, last) in enumerate([(0, 5), (3, 6)]):
        monkeypatch.setattr("swiftlet.train.events.os.getpid", lambda pid=pid: pid)
        state = TrainState(6, 1, 6, global_step=first)
        report = build_report(tmp_path, state, peak_memory_bytes=lambda: 0)
        for step in range(first + 1, last + 1):
            state.global_step = step
            report.log(state, {"loss": 10.0 * pid + step})
    assert len(list((tmp_path / "runs").iterdir())) == 2
    read = EventAccumulator(str(tmp_path / "runs")).Reload()
    found = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0), (5, 15.0), (6, 16.0)]


def test_lines_after_a_checkpoint_are_forgotten(tmp_path):
    file = tmp_path / "logging.jsonl"
    entries = [
        {"global_step": 1},
        {"global_step": 2},
        {"global_step": 3},
        {"global_step": 2, "train_runtime": 1.0},
    ]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"global_st')
    forget_after(file, 2)
    assert [json.loads(line) for line in file.read_text().splitlines()] == entries[:2]
    forget_after(tmp_path / "none.jsonl", 2)


def test_a_log_that_a_disk_has_spoilt_keeps_its_good_lines(tmp_path, capsys):
    file = tmp_path / "logging.jsonl"
    good = json.dumps({"global_step": 1, "note": "好"}, ensure_ascii=False).encode() + b"\n"
    file.write_bytes(good + b'{"global_step": 2, "\xff\xfe"}\n' + bytes(64) + b"\n")
    forget_after(file, 2)
    assert file.read_bytes() == good
    (tmp_path / "folder.jsonl").mkdir()
    forget_after(tmp_path / "folder.jsonl", 2)
    assert (
        "folder.jsonl cannot be cut back to step 2: Is a directory; the run goes on"
        in capsys.readouterr().err
    )


def test_a_log_that_cannot_be_written_costs_one_warning(tmp_path, caplog, monkeypatch):
    state = TrainState(4, 1, 4)
    report = build_report(tmp_path, state, peak_memory_bytes=lambda: 0)
    (tmp_path / "logging.jsonl").mkdir()
    (tmp_path / "runs").write_text("a file in the way")
    for _ in range(3):
        report.log(state, {"loss": 1.0, "learning_rate": 0.1})
    assert len(report.warned) == 2


def test_a_picture_a_scalar(tmp_path, build_job):
    tmp_path = tmp_path / "two words"
    job = build_job(tmp_path)
    train(job.run, job.state)
    found = summarise(job.run.report, job.state, job.run.saver, "swift infer --ckpt_dir {checkpoint}")
    names = {path.name for path in (tmp_path / "images").glob("*.png")}
    assert {"train_loss.png", "train_acc.png", "train_grad_norm.png", "train_learning_rate.png"} <= names
    assert {"eval_loss.png", "eval_acc.png", "train_tokens_per_second.png"} <= names
    best = tmp_path / f"checkpoint-{job.state.best_step}"
    assert f"best_model_checkpoint: {best}" in found
    assert f"last_model_checkpoint: {tmp_path / 'checkpoint-6'}" in found
    assert f"images_dir: {tmp_path / 'images'}" in found
    assert f"next: swift infer --ckpt_dir '{best}'" in found
    last = json.loads((tmp_path / "logging.jsonl").read_text().splitlines()[-1])
    assert last["global_step"] == 6
    assert last["train_runtime"] > 0


def test_the_best_checkpoint_that_was_not_kept_is_named(tmp_path, build_job):
    job = build_job(tmp_path, limit=1)
    train(job.run, job.state)
    job.state.best_step = 3

    found = summarise(job.run.report, job.state, job.run.saver)

    assert (
        "best_model_checkpoint: None (checkpoint-3 was the best and is not kept: --save_total_limit 2 keeps both)"
        in found
    )


def test_pictures_that_cannot_be_written_are_said(tmp_path):
    (tmp_path / "logging.jsonl").write_text('{"loss": 1.0, "global_step": 1}\nnot json\n[1]\n')
    (tmp_path / "images").write_text("a file in the way")
    assert plots.draw(tmp_path / "logging.jsonl", tmp_path / "images") == 0


def test_a_notebook_names_a_back_end_that_is_not_installed_here(tmp_path):
    (tmp_path / "logging.jsonl").write_text('{"loss": 1.0, "global_step": 1}\n')
    code = "from pathlib import Path; from swiftlet.train.plots import draw; print(draw(Path('logging.jsonl'), Path()))"
    environ = {**os.environ, "MPLBACKEND": "module://not_installed.backend_inline"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_smoothing_is_corrected_for_its_start():
    assert plots.smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


def test_optimizer_state_is_split_into_files_and_read_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("swiftlet.train.statefile.SHARD_BYTES", 100)
    tensors = {f"exp_avg/layer.{n}": torch.full((5,), float(n)) for n in range(12)}
    write_optimizer(tmp_path, tensors.items())
    assert len(list(tmp_path.glob("optimizer-*.safetensors"))) == 3
    found = open_optimizer(tmp_path)
    assert set(found) == set(tensors)
    assert len(found) == 12
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    write_optimizer(None, tensors.items())


def test_a_write_that_fails_takes_all_tensors_before_it_says_so(tmp_path):
    taken = []

    def tensors():
        for number in range(4):
            taken.append(number)
            yield f"a/{number}", torch.zeros(2)

    with pytest.raises(Exception, match="No such file or directory"):
        write_optimizer(tmp_path / "nowhere", tensors())
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("steps", "best", "limit", "gone"),
    [
        ([1, 2, 3, 4], 2, 2, [1, 3]),
        ([1, 2, 3], 3, 2, [1]),
        ([1, 2, 3], 0, 2, [1]),
        ([1, 2, 3], 1, 1, [1, 2]),
        ([1, 2, 3], 1, -1, []),
        ([1, 2], 1, 2, []),
        ([1, 2, 3], 1, 0, [1, 2]),
    ],
)
def test_what_is_kept(steps, best, limit, gone):
    assert superfluous(steps, best, limit) == gone


def test_too_little_space_is_found_before_writing(tmp_path):
    with pytest.raises(OSError, match="MiB are free on"):
        check_space(tmp_path, 2**60)


def test_a_folder_in_the_way_is_set_aside(tmp_path, build_job, caplog):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "mine.txt").write_text("keep me")
    job = build_job(tmp_path, num_steps=2)
    train(job.run, job.state)
    (aside,) = tmp_path.glob("old-checkpoint-2-*")
    assert (aside / "mine.txt").read_text() == "keep me"


def test_times_are_short():
    assert short_time(3723.4) == "1:02:03"


@contextlib.contextmanager
def files_of_at_most(num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_takes_a_part_of_spoils_nothing_that_comes_later(tmp_path, caplog):
    """A disk fills up in the middle of a line and of a TensorBoard record, and has room again afterwards."""
    report = build_report(tmp_path, TrainState(9, 1, 9), peak_memory_bytes=lambda: 0)
    state = TrainState(9, 1, 9, global_step=1)
    figures = {"loss": 1.0, "acc": 0.5, "grad_norm": 1.0, "learning_rate": 1.0}
    report.log(state, figures)
    size = (tmp_path / "logging.jsonl").stat().st_size
    events_size = report.events.stat().st_size
    for most in (size + 20, events_size + 20):
        state.global_step += 1
        with files_of_at_most(most):
            report.log(state, figures)
    state.global_step += 1
    report.log(state, figures)
    steps = [
        json.loads(line)["global_step"] for line in (tmp_path / "logging.jsonl").read_text().splitlines()
    ]
    assert steps[0] == 1 and steps[-1] == 4 and len(steps) < 4
    read = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(tmp_path / "runs")
    )
    read.Reload()
    seen = [event.step for event in read.Scalars("train/loss")]
    assert seen[0] == 1 and seen[-1] == 4
    assert any("File too large; the run goes on without it" in text for text in caplog.messages)


def test_lines_of_a_log_that_are_no_objects_are_forgotten(tmp_path):
    file = tmp_path / "logging.jsonl"
    file.write_text('{"global_step": 1}\n5\nnull\n["x"]\n{"global_step": 9}\n')
    forget_after(file, 2)
    assert file.read_text() == '{"global_step": 1}\n'
    file.write_text('{"global_step": 1}\n5\n')
    assert not has_summary(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named_and_unlocked(tmp_path, monkeypatch):
    def broken(folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("swiftlet.train.lock.remove_abandoned", broken)
    with pytest.raises(UsageError, match="Input/output error\nhint: choose another"), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("held", "shown"), [(3 * 2**29, " tokens/s 1.5 GiB, "), (0, " tokens/s, ")])
def test_each_line_of_the_log_says_the_memory_where_it_is_known(held, shown, tmp_path, monkeypatch):
    lines = []
    report = build_report(tmp_path, TrainState(9, 1, 9), peak_memory_bytes=lambda: held)
    monkeypatch.setattr(report.progress, "line", lambda step, text: lines.append(text))
    report.log(TrainState(9, 1, 9), {"loss": 1.0})
    assert shown in lines[0]


def test_the_time_left_is_that_of_the_steps_evaluations_and_saves_to_come(tmp_path, monkeypatch, capfd):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    state = TrainState(100, 1, 100)
    to_come = {"evaluation": Every(15).times_left, "save": Every(30).times_left}
    forecast = Forecast(1.0, 1.0, 1.0, step_seconds=2.0, evaluation_seconds=8.0)
    report = build_report(tmp_path, state, peak_memory_bytes=lambda: 0, forecast=forecast, to_come=to_come)
    now[0] += 500  # the largest micro-batch is tried
    report.resume_clock()

    def left_after(step: int, seconds: float) -> str:
        while state.global_step < step:
            state.global_step += 1
            now[0] += seconds
            report.step(state, 1)
        report.log(state, {"loss": 1.0})
        return re.search(r"(\S+) left$", capfd.readouterr().err.strip())[1]

    left_after(1, 70)  # it makes what later ones find
    assert left_after(14, 10) == short_time(
        86 * 10 + 7 * 40
    )  # by the plan, as wrong as in the time of a step
    now[0] += 60
    report.resume_clock("evaluation")
    assert left_after(29, 10) == short_time(71 * 10 + 6 * 60)
    now[0] += 25
    report.resume_clock("save")
    assert left_after(31, 10) == short_time(69 * 10 + 5 * 60 + 3 * 25)
    assert left_after(100, 10) == "0:00:00"


@pytest.mark.parametrize("due", [Every(3), Every(25), Every(40), Every(at_epoch_end=True), Every()])
def test_how_often_something_is_still_due_is_how_often_it_then_comes(due):
    state, found, times = TrainState(25, 1, 10), [], []
    while not state.is_done:
        found.append(due.times_left(state))
        state.advance(1, 1)
        times.append(due(state))
    assert found == [sum(times[at:]) for at in range(25)]
    assert due.times_left(state) == 0


def test_the_time_left_of_a_resumed_run_is_by_the_steps_that_it_has_made_itself(tmp_path, monkeypatch, capfd):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    state = TrainState(100, 1, 100, global_step=60)
    report = build_report(tmp_path, state, peak_memory_bytes=lambda: 0)
    report.resume_clock()
    for _ in range(20):
        state.global_step += 1
        now[0] += 10
        report.step(state, 1)
    report.log(state, {"loss": 1.0})
    assert "0:03:20 left" in capfd.readouterr().err


def test_an_evaluation_is_a_line_of_the_log(tmp_path):
    state = TrainState(9, 1, 9, global_step=3)
    report = build_report(tmp_path, state, peak_memory_bytes=lambda: 0)
    report.evaluation(state, {"eval_loss": 1.23456789})
    (line,) = map(json.loads, (tmp_path / "logging.jsonl").read_text("utf-8").splitlines())
    assert (line["eval_loss"], line["global_step"]) == (pytest.approx(1.234568), 3) and "epoch" in line
