"""The loop on the toy: trajectories, resume, stops, what it writes and what it says."""

import os
import signal
import time
import weakref
from dataclasses import replace
from itertools import islice

import pytest
import torch

from run_files import hashes, lines
from swiftlet import heartbeat
from swiftlet.errors import CheckpointError, DataError, NonFiniteError, OutOfMemoryError, SaveError
from swiftlet.stopping import NOTICES, STOP_SIGNALS, is_repeated
from swiftlet.train.loop import train
from swiftlet.train.memory_trial import MemoryPlan
from swiftlet.train.objective import forward, seed_step
from swiftlet.train.resume import find_checkpoint, open_checkpoint
from swiftlet.train.run import Every
from swiftlet.train.signals import Interrupted, StopRequest, listening
from swiftlet.train.spikes import find_policy
from swiftlet.train.state import parse_state


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run_to_end(job):
    train(job.run, job.state)
    job.run.report.close()
    return job


@pytest.fixture
def golden(tmp_path, build_job):
    return run_to_end(build_job(tmp_path / "golden"))


@pytest.mark.parametrize(
    "shape", [{"accumulation": 1, "batch_size": 4}, {"accumulation": 2, "batch_size": 2}]
)
@pytest.mark.parametrize("budget", [0, 16, 10_000])
def test_the_trajectory_does_not_depend_on_how_a_step_is_cut(tmp_path, build_job, shape, budget):
    one = run_to_end(build_job(tmp_path / "a", dropout=0.0))
    other = run_to_end(build_job(tmp_path / "b", dropout=0.0, budget=budget, **shape))
    torch.testing.assert_close(weights(one.model), weights(other.model), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert mine["global_step"] == theirs["global_step"]
        for name in ("loss", "grad_norm", "acc", "learning_rate", "eval_loss"):
            assert (name in mine) == (name in theirs)
            assert mine.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=1e-5), (
                name,
                mine["global_step"],
            )


def test_a_line_of_the_log_is_over_all_tokens_since_the_last_one(tmp_path, build_job):
    job = build_job(tmp_path, num_steps=4, dropout=0.0, save_every=9, evaluate_every=9)
    job.run = replace(job.run, learning_rate=lambda step: 0.0, log_when=Every(2))
    sums = []
    for loaded in islice(job.run.load_steps(0, 0), 4):
        losses = [forward(job.model, batch) for batch in loaded.micro_batches]
        rows = [(one.loss_sum.item(), int(one.num_correct), int(one.num_tokens)) for one in losses]
        sums.append([*map(sum, zip(*rows, strict=True)), loaded.step.num_tokens])
    run_to_end(job)
    made = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["global_step"] for line in made] == [2, 4]
    for line, two in zip(made, (sums[:2], sums[2:]), strict=True):
        loss, correct, labels, _ = map(sum, zip(*two, strict=True))
        assert line["loss"] == pytest.approx(loss / labels, rel=1e-5)
        assert line["acc"] == pytest.approx(correct / labels, rel=1e-5)
    assert job.state.num_label_tokens == sum(row[2] for row in sums)
    assert job.state.num_tokens == sum(row[3] for row in sums)


@pytest.mark.parametrize("step", range(1, 6))
def test_a_run_resumed_at_any_step_equals_an_uninterrupted_one_in_every_byte(
    tmp_path, build_job, golden, step, plan_fault
):
    first = build_job(tmp_path / "run")
    plan_fault(f"opt:step={step + 1}=exc")
    with pytest.raises(RuntimeError, match="injected at opt"):
        train(first.run, first.state)
    checkpoint = open_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
    state_file = checkpoint.path / "trainer_state.json"
    assert parse_state(state_file.read_text("utf-8")).global_step == step
    run_to_end(build_job(tmp_path / "run", checkpoint=checkpoint))
    assert hashes(tmp_path / "run" / "checkpoint-6") == hashes(tmp_path / "golden" / "checkpoint-6")
    figures = [
        {k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines(tmp_path / "run")
    ]
    assert figures == [
        {k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines(tmp_path / "golden")
    ]


def test_threads_that_load_change_nothing(tmp_path, build_job, golden):
    run_to_end(build_job(tmp_path / "threads", workers=3))
    assert hashes(tmp_path / "threads" / "checkpoint-6") == hashes(tmp_path / "golden" / "checkpoint-6")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_at_the_next_step_and_names_the_way_on(tmp_path, build_job, number):
    stop = StopRequest()
    job = build_job(tmp_path, stop=stop, save_every=100)
    make = job.run.report.step

    def step(state, num_tokens):
        make(state, num_tokens)
        if state.global_step == 2:
            stop.handle(number, None)

    job.run.report.step = step
    with pytest.raises(Interrupted) as caught:
        train(job.run, job.state)
    assert caught.value.exit_code == 128 + number
    assert "checkpoint-3 is saved" in caught.value.message
    assert "--resume_from_checkpoint auto" in caught.value.hint
    assert find_checkpoint(tmp_path).manifest.step == 3


def test_an_evaluation_left_out_by_a_stop_is_made_by_the_resumed_run(tmp_path, build_job, golden, plan_fault):
    stop = StopRequest()
    first = build_job(tmp_path / "run", stop=stop)
    make = first.run.report.step

    def step(state, num_tokens):
        make(state, num_tokens)
        if state.global_step == 2:
            stop.handle(signal.SIGTERM, None)

    first.run.report.step = step
    with pytest.raises(Interrupted, match="after step 3"):
        train(first.run, first.state)
    assert not any("eval_loss" in line for line in lines(tmp_path / "run"))
    run_to_end(build_job(tmp_path / "run", checkpoint=open_checkpoint(tmp_path / "run" / "checkpoint-3")))
    assert hashes(tmp_path / "run" / "checkpoint-6") == hashes(tmp_path / "golden" / "checkpoint-6")
    evaluated = [line["global_step"] for line in lines(tmp_path / "run") if "eval_loss" in line]
    assert evaluated == [3, 6]


def test_a_run_that_stopped_early_makes_no_further_step(tmp_path, build_job, monkeypatch):
    job = build_job(tmp_path, num_steps=30, patience=1, evaluate_every=1)
    scores = iter([3.0, 3.5, 2.0])
    monkeypatch.setattr(
        type(job.run.evaluate), "_token_scores", lambda self, is_asked: {"eval_loss": next(scores)}
    )
    run_to_end(job)
    again = build_job(
        tmp_path,
        num_steps=30,
        patience=1,
        evaluate_every=1,
        checkpoint=open_checkpoint(tmp_path / "checkpoint-2"),
    )
    run_to_end(again)
    assert again.state.global_step == 2


def test_best_and_last_are_kept(tmp_path, build_job):
    job = run_to_end(build_job(tmp_path, num_steps=9, limit=2, save_every=3))
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == sorted(
        {
            f"checkpoint-{job.state.best_step}",
            "checkpoint-9",
            *(["checkpoint-6"] if job.state.best_step == 9 else []),
        }
    )


def test_early_stop(tmp_path, build_job, monkeypatch):
    job = build_job(tmp_path, num_steps=30, patience=2, evaluate_every=1)
    scores = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(
        type(job.run.evaluate), "_token_scores", lambda self, is_asked: {"eval_loss": next(scores)}
    )
    run_to_end(job)
    assert job.state.global_step == 4
    assert find_checkpoint(tmp_path).manifest.step == 4


@pytest.mark.parametrize(("site", "word"), [("fwd:step=2=nan", "loss"), ("bwd:step=2=inf", "gradient")])
def test_what_is_not_finite_stops_before_the_update(tmp_path, build_job, plan_fault, site, word):
    job = build_job(tmp_path)
    plan_fault(site)
    with pytest.raises(
        NonFiniteError, match=f"the {word} of step 2 is not finite; nothing was updated. .*rows"
    ):
        train(job.run, job.state)
    saved = open_checkpoint(tmp_path / "checkpoint-1")
    from safetensors.torch import load_file

    for name, value in load_file(saved.path / "model.safetensors").items():
        assert torch.equal(value, job.model.state_dict()[name])


def test_weights_that_are_not_finite_are_named_instead_of_rows(tmp_path, build_job):
    job = build_job(tmp_path)
    name, weight = next(iter(job.model.named_parameters()))
    weight.data.fill_(float("nan"))
    with pytest.raises(
        NonFiniteError, match=f"of step 1 is not finite; nothing .*, {name} among them"
    ) as caught:
        train(job.run, job.state)
    assert "get the model again" in caught.value.hint


def test_weights_that_an_update_has_spoilt_are_never_saved(tmp_path, build_job, monkeypatch):
    job = build_job(tmp_path, num_steps=4)
    spoil = job.run.engine.update

    def update(max_grad_norm):
        spoil(max_grad_norm)
        if job.state.global_step == 2:
            next(job.model.parameters()).data[0] = float("nan")

    monkeypatch.setattr(job.run.engine, "update", update)
    with pytest.raises(NonFiniteError, match="after step 3 weights are not finite, .* nothing was saved"):
        train(job.run, job.state)
    assert find_checkpoint(tmp_path).manifest.step == 2


def test_an_evaluation_that_is_not_finite_warns_and_is_never_the_best(
    tmp_path, build_job, monkeypatch, caplog
):
    job = build_job(tmp_path, num_steps=3, evaluate_every=1)
    scores = iter([float("nan"), 2.0, float("inf")])
    monkeypatch.setattr(
        type(job.run.evaluate), "_token_scores", lambda self, is_asked: {"eval_loss": next(scores)}
    )
    run_to_end(job)
    assert (job.state.best_step, job.state.best_metric) == (2, 2.0)
    for told in ("eval_loss of step 1 is nan: this step", "eval_loss of step 3 is inf: this step"):
        assert told in caplog.text


def test_out_of_memory_says_what_to_type(tmp_path, build_job, plan_fault):
    job = build_job(tmp_path)
    plan_fault("fwd:step=3=oom")
    with pytest.raises(
        OutOfMemoryError, match="out of memory at step 3: its largest micro-batch has"
    ) as caught:
        train(job.run, job.state)
    assert "--micro_batch_tokens" in caught.value.hint
    assert find_checkpoint(tmp_path).manifest.step == 2


def test_the_largest_micro_batch_is_tried_first_and_leaves_no_trace(tmp_path, build_job, golden, caplog):
    job = build_job(tmp_path / "run")
    largest = max(
        (batch for loaded in islice(job.run.load_steps(0, 0), 6) for batch in loaded.micro_batches),
        key=lambda batch: len(batch.input_ids_T),
    )
    job.run = replace(job.run, memory=MemoryPlan(largest, "weights 1 GiB", "type --max_length 5"))
    with caplog.at_level("INFO"):
        run_to_end(job)
    assert f"the largest micro-batch, {len(largest.input_ids_T)} tokens, fits" in caplog.text
    assert hashes(tmp_path / "run" / "checkpoint-6") == hashes(tmp_path / "golden" / "checkpoint-6")


def test_a_largest_micro_batch_that_does_not_fit_is_said_before_the_first_step(tmp_path, build_job):
    job = build_job(tmp_path)
    loaded = next(iter(job.run.load_steps(0, 0)))
    largest, before = loaded.micro_batches[0], weights(job.model)

    def full(*_):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    job.model.dropout.register_forward_hook(full)
    job.run = replace(job.run, memory=MemoryPlan(largest, "weights 1 GiB", "type --max_length 5"))
    with pytest.raises(OutOfMemoryError) as caught:
        train(job.run, job.state)
    assert caught.value.message == (
        "out of memory before the first step: the largest micro-batch of the run has "
        f"{len(largest.input_ids_T)} tokens; by the plan: weights 1 GiB"
    )
    assert caught.value.hint == "type --max_length 5"
    assert torch.equal(weights(job.model), before) and not list(tmp_path.glob("checkpoint-*"))


def test_out_of_memory_in_an_evaluation_says_so_and_leaves_the_checkpoint_before(
    tmp_path, build_job, plan_fault
):
    job = build_job(tmp_path, num_steps=5, evaluate_every=1, save_every=2)
    plan_fault("eval.batch:nth=4=oom")
    with pytest.raises(
        OutOfMemoryError, match="out of memory in the evaluation after step [1-5]: "
    ) as caught:
        train(job.run, job.state)
    for word in ("lower --micro_batch_tokens", "--evaluation_strategy no", "--resume_from_checkpoint auto"):
        assert word in caught.value.hint


def test_who_waits_for_data_after_a_save_or_an_evaluation_is_in_the_next_step(
    tmp_path, build_job, monkeypatch
):
    seen, at_data = [("load", 0)], {}
    monkeypatch.setattr("swiftlet.heartbeat.beat", lambda phase, step=0: seen.append((phase, step)))
    job = build_job(tmp_path, num_steps=4, evaluate_every=2, save_every=2)
    original = job.run.load_steps

    def noting(epoch, step):
        for loaded in original(epoch, step):
            at_data[len(at_data) + 1] = seen[-1]
            yield loaded

    train(type(job.run)(**{**vars(job.run), "load_steps": noting}), job.state)
    assert at_data == {step: ("step", step) for step in range(1, 5)}
    assert ("save", 2) in seen and ("eval", 2) in seen


def test_no_pass_begins_while_the_graph_of_the_one_before_is_there(tmp_path, build_job, monkeypatch):
    """A recorded pass would share the nodes of its weights with it, which a GPU refuses."""
    job = build_job(tmp_path, num_steps=2, evaluate_every=9)
    own, before = type(job.model).forward, []

    def forward(self, *inputs):
        assert [one() for one in before] == [None] * len(before)
        losses = own(self, *inputs)
        before.extend([weakref.ref(losses.loss_sum)] if self.training else [])
        return losses

    monkeypatch.setattr(type(job.model), "forward", forward)
    train(job.run, job.state)
    assert len(before) > 4


def test_a_step_without_labels_is_an_error(tmp_path, build_job):
    job = build_job(tmp_path)
    original = job.run.load_steps

    def unlabelled(epoch, step):
        for loaded in original(epoch, step):
            yield loaded._replace(step=loaded.step._replace(num_label_tokens=0))

    run = type(job.run)(**{**vars(job.run), "load_steps": unlabelled})
    with pytest.raises(DataError, match="no token of step 1 of epoch 1 is trained on"):
        train(run, job.state)


def test_a_full_disk_costs_a_warning_and_is_tried_again(tmp_path, build_job, plan_fault, caplog):
    job = build_job(tmp_path, save_every=2)
    plan_fault("ckpt.begin:step=2=enospc")
    train(job.run, job.state)
    assert not (tmp_path / "checkpoint-2").exists()
    assert (tmp_path / "checkpoint-3").is_dir(), "tried again one step later"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_full_disk_stops_the_run_where_that_is_asked_for(tmp_path, build_job, plan_fault):
    job = build_job(tmp_path, save_every=2)
    job.run.saver.is_error_fatal = True
    plan_fault("ckpt.file.model.safetensors:step=4=eio")
    with pytest.raises(SaveError, match="checkpoint-4 could not be written: Input/output error; earlier"):
        train(job.run, job.state)
    assert find_checkpoint(tmp_path).manifest.step == 2


def test_spikes_are_skipped_and_counted(tmp_path, build_job, plan_fault):
    job = build_job(tmp_path, num_steps=20, save_every=100, spikes=find_policy("skip"))
    plan_fault("bwd:step=18=spike=1000")
    after, step = {}, job.run.report.step
    job.run.report.step = lambda state, num_tokens: (
        after.setdefault(state.global_step, weights(job.model)),
        step(state, num_tokens),
    )
    train(job.run, job.state)
    assert job.state.num_skipped == 1
    assert torch.equal(after[18], after[17]), "nothing was updated by it"
    assert not torch.equal(after[19], after[18])


def test_spikes_stop_the_run(tmp_path, build_job, plan_fault):
    job = build_job(tmp_path, num_steps=20, save_every=100, spikes=find_policy("stop"))
    plan_fault("bwd:step=18=spike=1000")
    with pytest.raises(NonFiniteError, match="of step 18 is a spike"):
        train(job.run, job.state)


def test_a_checkpoint_without_a_state_cannot_be_continued(tmp_path, build_job):
    job = build_job(tmp_path, num_steps=1)
    job.run.saver.is_model_only = True
    train(job.run, job.state)
    with pytest.raises(CheckpointError, match="holds only the model"):
        open_checkpoint(tmp_path / "checkpoint-1").read_state()


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "rmsprop"])
def test_other_optimizers_resume_too(tmp_path, build_job, optim, plan_fault):
    run_to_end(build_job(tmp_path / "a", optim=optim))
    first = build_job(tmp_path / "b", optim=optim)
    plan_fault("opt:step=4=exc")
    with pytest.raises(RuntimeError, match="injected at opt"):
        train(first.run, first.state)
    run_to_end(
        build_job(tmp_path / "b", optim=optim, checkpoint=open_checkpoint(tmp_path / "b" / "checkpoint-3"))
    )
    assert hashes(tmp_path / "a" / "checkpoint-6") == hashes(tmp_path / "b" / "checkpoint-6")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_before_the_first_step_ends_the_run_at_once(number):
    with pytest.raises(Interrupted, match="before a step was made") as caught, listening():
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("the signal was put off")
    assert caught.value.exit_code == 128 + number


def test_a_signal_that_reaches_a_watched_rank_several_times_is_one_request(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    request = StopRequest(is_stepping=True)
    for _ in range(3):  # from outside, from the watchdog and from torchrun
        request.handle(signal.SIGTERM, None)
    assert request.number == signal.SIGTERM


def test_a_signal_between_steps_says_what_happens_next(capfd):
    request = StopRequest(is_stepping=True)
    request.handle(signal.SIGINT, None)
    assert request
    assert "stopping after this step" in capfd.readouterr().err


@pytest.mark.parametrize("notice", NOTICES)
def test_what_a_scheduler_sends_after_its_notice_is_the_same_request(notice):
    request = StopRequest(is_stepping=True)
    for number in (notice, notice, signal.SIGTERM):
        request.handle(number, None)  # a second signal would end these tests
    assert request.number == notice
    assert not is_repeated(signal.SIGINT, notice)  # a person's, who does not wait
    assert not is_repeated(signal.SIGTERM, signal.SIGTERM)


@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_a_closed_terminal_that_the_kernel_and_the_shell_tell_of_is_one_request(first):
    request = StopRequest(is_stepping=True)
    for number in (first, signal.SIGHUP, signal.SIGHUP):
        request.handle(number, None)  # a second signal would end these tests
    assert request.number == first


def test_a_run_under_nohup_goes_on_when_the_terminal_closes():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as request:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not request
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_request_to_stop_does_not_wait_for_an_evaluation(tmp_path, build_job, monkeypatch):
    """It is saved at once; the resumed run makes the evaluation, as if there had been no stop. The last one is made."""
    whole = run_to_end(build_job(tmp_path / "whole", num_steps=6))
    job = build_job(tmp_path / "run", num_steps=6)
    every = type(job.run.evaluate)._micro_batches

    def asked(self):
        job.run.stop.number = 15
        return every(self)

    monkeypatch.setattr(type(job.run.evaluate), "_micro_batches", asked)
    with pytest.raises(Interrupted, match="after step 3 of 6; checkpoint-3 is saved"):
        train(job.run, job.state)
    assert [line for line in lines(tmp_path / "run") if "eval_loss" in line] == []
    monkeypatch.undo()
    checkpoint = open_checkpoint(tmp_path / "run" / "checkpoint-3")
    again = run_to_end(build_job(tmp_path / "run", num_steps=6, checkpoint=checkpoint))
    assert again.state == whole.state
    last = build_job(tmp_path / "last", num_steps=3)
    monkeypatch.setattr(
        type(job.run.evaluate),
        "_micro_batches",
        lambda self: setattr(last.run.stop, "number", 15) or every(self),
    )
    run_to_end(last)
    assert [line["global_step"] for line in lines(tmp_path / "last") if "eval_loss" in line] == [3]


def test_a_step_is_seeded_without_writing_down_the_stack(monkeypatch):
    """As torch.manual_seed does for every kind of device that is not in use: half a millisecond a step."""
    monkeypatch.setattr("traceback.format_stack", lambda: pytest.fail("the stack was written down"))
    drawn = []
    for step in (1, 1, 2):
        seed_step(42, step, 0, torch.device("cpu"))
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
