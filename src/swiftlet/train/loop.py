"""The training loop. It gets finished objects and names no device, back end or setting.

A step: compute the gradient, check it, update, report, evaluate, save. All ranks take the same decisions at the
same step. A run that stops early, for whatever reason, leaves a checkpoint of the last step boundary.
"""

from __future__ import annotations

import torch

from swiftlet import heartbeat, log
from swiftlet.data.loader import LoadedStep
from swiftlet.errors import OutOfMemoryError, first_line
from swiftlet.faults import fault
from swiftlet.train.memory_trial import try_largest
from swiftlet.train.nonfinite import check_score, check_weights, explain, is_finite
from swiftlet.train.objective import Gradient, compute_gradient, seed_step
from swiftlet.train.report import EVALUATION, SAVE
from swiftlet.train.run import Run
from swiftlet.train.signals import Interrupted
from swiftlet.train.spikes import is_spike
from swiftlet.train.state import Totals, TrainState

EVALUATE_LESS = (
    "lower --micro_batch_tokens, or type --evaluation_strategy no and evaluate afterwards with swift infer; add "
    "--resume_from_checkpoint auto"
)


def train(run: Run, state: TrainState) -> TrainState:
    """Make all remaining steps; return the state, which is changed in place.

    Raises:
        Interrupted: a signal asked for a stop; the run was saved.
        NonFiniteError: a loss or gradient is not finite, or there were too many spikes; nothing was updated.
        DataError: a step has nothing to learn from.
        SaveError: a checkpoint could not be written, and that is fatal.
        OutOfMemoryError: the device has too little memory.
    """
    run.model.train(True)
    try_largest(run.memory, run.model, run.engine, run.device)
    run.report.resume_clock()
    steps = run.load_steps(state.epoch, state.step_in_epoch)
    try:
        catch_up(run, state)
        run.stop.is_stepping = True
        while not (state.is_done or run.goal.is_over(state)):
            # Before its data: a rank that waits for them after a save or an evaluation is in neither any more.
            heartbeat.beat("step", state.global_step + 1)
            is_stop_requested = make_step(run, next(steps), state)
            if run.evaluate_when(state) and (state.is_done or not is_stop_requested):
                evaluate(run, state)
                is_stop_requested = run.world.agree(bool(run.stop))
            if is_stop_requested and not state.is_done:
                leave(run, state)
            is_over = run.goal.is_over(state)
            if is_over or run.save_when(state) or (run.saver is not None and run.saver.is_retry_due(state)):
                save(run, state, is_final=is_over or state.is_done)
            if is_over:
                log.info(
                    f"early stop at step {state.global_step}: no better {run.goal.metric} than {state.best_seen}"
                )
                break
    finally:
        steps.close()
        if run.saver is not None:
            run.saver.close()
    return state


def make_step(run: Run, loaded: LoadedStep, state: TrainState) -> bool:
    """Make one optimizer step; return whether any rank was asked to stop."""
    step = state.global_step + 1
    rate = run.engine.set_learning_rate(run.learning_rate(state.global_step))
    seed_step(state.seed, step, run.world.rank, run.device)
    try:
        gradient = compute_gradient(
            run.model,
            run.engine,
            run.world,
            loaded,
            device=run.device,
            step=step,
            is_stop_requested=bool(run.stop),
        )
        if run.saver is not None:
            run.saver.hold(state)
        update(run, gradient, loaded, state)
    except torch.OutOfMemoryError as error:
        largest = max(len(batch.input_ids_T) for batch in loaded.micro_batches)
        raise run.memory.error(f"at step {step}: its largest micro-batch", largest) from error
    state.advance(loaded.step.num_tokens, loaded.step.num_label_tokens)
    run.report.step(state, loaded.step.num_tokens)
    report(run, gradient, loaded, state, rate)
    return gradient.is_stop_requested


def update(run: Run, gradient: Gradient, loaded: LoadedStep, state: TrainState) -> None:
    """Update the parameters, unless the gradient is not finite (an error) or a spike that is skipped."""
    step = state.global_step + 1
    if not is_finite(gradient):
        raise explain(run, gradient, loaded, state)
    fault("opt", step=step)
    if is_spike(run.spikes, state, gradient.grad_norm):
        log.info(f"step {step} was skipped: gradient norm {gradient.grad_norm:.3g}")
        run.engine.drop()
    else:
        run.engine.update(run.max_grad_norm)


def report(run: Run, gradient: Gradient, loaded: LoadedStep, state: TrainState, rate: float) -> None:
    """Add a step to the running totals, and log them when it is time."""
    totals = state.since_log
    totals.loss += gradient.loss_sum
    totals.num_correct += gradient.num_correct
    totals.num_label_tokens += loaded.step.num_label_tokens
    if run.log_when(state):
        figures = {
            "loss": totals.loss / totals.num_label_tokens,
            "acc": totals.num_correct / totals.num_label_tokens,
            "grad_norm": gradient.grad_norm,
            "learning_rate": rate,
        }
        run.report.log(state, figures)
        state.since_log = Totals()


def evaluate(run: Run, state: TrainState) -> None:
    """Evaluate, report, and note the outcome in the state."""
    if run.evaluate is None:
        return
    heartbeat.beat("eval", state.global_step)
    # That of the last step is made whatever comes: there is no later one, and nothing is left to continue.
    try:
        scores = run.evaluate(lambda: bool(run.stop) and not state.is_done)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory in the evaluation after step {state.global_step}: {first_line(error)}",
            EVALUATE_LESS,
        ) from error
    if scores is None:
        return
    run.goal.note(state, scores)
    if run.world.is_main:
        check_score(run.goal.metric, scores[run.goal.metric], state.global_step)
    run.report.evaluation(state, scores)
    run.report.resume_clock(EVALUATION)


def catch_up(run: Run, state: TrainState) -> None:
    """Evaluate the checkpoint just resumed where the run that left it was asked to stop before it could."""
    is_missing = state.global_step > 0 and state.metric_step != state.global_step
    if run.evaluate is None or not is_missing or not run.evaluate_when(state):
        return
    evaluate(run, state)
    if run.save_when(state) and run.goal.is_better(state.metric, state.best_metric):
        state.best_metric, state.best_step = state.metric, state.global_step


def save(run: Run, state: TrainState, *, is_final: bool = False) -> bool:
    """Save, as the best checkpoint where this step was evaluated and is; return whether there is a checkpoint."""
    if run.saver is None:
        return False
    heartbeat.beat("save", state.global_step)
    check_weights(run.model, run.world, state.global_step)
    former = state.best_metric, state.best_step
    is_evaluated = state.metric_step == state.global_step
    if is_evaluated and run.goal.is_better(state.metric, state.best_metric):
        state.best_metric, state.best_step = state.metric, state.global_step
    path = run.saver.save(state, former_best=former, is_final=is_final)
    run.report.resume_clock(SAVE)
    return path is not None


def leave(run: Run, state: TrainState) -> None:
    """Save and raise `Interrupted` for the signal that any rank received."""
    is_saved = save(run, state, is_final=True)
    number = max(run.world.gather(run.stop.number))
    where = f"checkpoint-{state.global_step} is saved" if is_saved else "nothing was saved"
    raise Interrupted(
        number,
        f"stopped by signal {number} after step {state.global_step} of {state.num_steps}; {where}",
        "continue with the same command and --resume_from_checkpoint auto",
    )
