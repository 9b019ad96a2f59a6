"""A loss or gradient that is not finite: nothing is updated, and the message says where it came from.

Losses name their micro-batch. For a gradient the step is run again, micro-batch by micro-batch and without
reduction, with the same random numbers, until the rank, the rows and the parameter are known.
"""

from __future__ import annotations

import math

import torch

from swiftlet import log
from swiftlet.data.batching import MicroBatch
from swiftlet.data.loader import LoadedStep
from swiftlet.errors import NonFiniteError
from swiftlet.parallel.world import World
from swiftlet.train.objective import Gradient, LanguageModel, forward, seed_step
from swiftlet.train.run import Run
from swiftlet.train.state import TrainState

HINT = "look at these rows; a lower --learning_rate or --dtype bf16 or fp32 helps when the rows are fine"
WEIGHTS_HINT = (
    "get the model again from where it came, or continue from an earlier checkpoint; with --dtype fp16 the weights may "
    "be too large for that type: use bf16 or fp32"
)
MOST_ROWS, MOST_WEIGHTS = 8, 3


def is_finite(gradient: Gradient) -> bool:
    """Return whether both the loss and the norm of the gradient are finite."""
    return math.isfinite(gradient.loss_sum) and math.isfinite(gradient.grad_norm)


def explain(run: Run, gradient: Gradient, loaded: LoadedStep, state: TrainState) -> NonFiniteError:
    """Return the error that names step, rank and rows, or the weights; drops the gradient. Every rank calls it."""
    world, step = run.world, state.global_step + 1
    parameter = run.engine.bad_gradient()
    run.engine.drop()
    found = [
        _place(run, batch, f"loss {float(loss)}")
        for loss, batch in zip(gradient.micro_losses, loaded.micro_batches, strict=True)
        if not math.isfinite(float(loss))
    ]
    found = [place for places in world.gather(found) for place in places]
    weights = [name for names in world.gather(bad_weights(run.model)) for name in names]
    if weights:
        shown = ", ".join(list(dict.fromkeys(weights))[:MOST_WEIGHTS])
        what = "loss" if found else "gradient"
        return NonFiniteError(
            f"the {what} of step {step} is not finite; nothing was updated. Weights are not finite before this step, "
            f"{shown} among them",
            WEIGHTS_HINT,
        )
    if found:
        where = "; ".join(found)
        return NonFiniteError(f"the loss of step {step} is not finite; nothing was updated. {where}", HINT)
    seed_step(state.seed, step, world.rank, run.device)
    where = "; ".join(_replay(run, loaded))
    where = (
        where or f"parameter {parameter}, rows {', '.join(run.name_rows(loaded.step.samples)[:MOST_ROWS])}"
    )
    return NonFiniteError(f"the gradient of step {step} is not finite; nothing was updated. {where}", HINT)


def check_score(metric: str, value: float, step: int) -> None:
    """Warn of an evaluation that is not finite."""
    if not math.isfinite(value):
        log.warning(f"{metric} of step {step} is {value}: this step is never the best checkpoint")


def check_weights(model: LanguageModel, world: World, step: int) -> None:
    """Check that what the updates have made is worth a checkpoint. Every rank calls it.

    Raises:
        NonFiniteError: weights are not finite.
    """
    mine = bad_weights(model, is_trained=True)
    found = list(dict.fromkeys(name for names in world.gather(mine) for name in names))
    if found:
        raise NonFiniteError(
            f"after step {step} weights are not finite, {', '.join(found[:MOST_WEIGHTS])} among them; nothing was "
            "saved, earlier checkpoints are intact",
            "use a lower --learning_rate, or --dtype bf16 or fp32",
        )


@torch.no_grad()
def bad_weights(model: LanguageModel, *, is_trained: bool = False) -> list[str]:
    """Return the names of the parameters that are not finite in what this rank holds of them.

    Args:
        is_trained: look only at those that updates change.
    """
    held = {
        name: getattr(weight, "to_local", weight.detach)()
        for name, weight in model.named_parameters()
        if (weight.requires_grad or not is_trained)
        and weight.is_floating_point()
        and weight.element_size() > 1
    }
    if not held:
        return []
    device = next(iter(held.values())).device
    flags = torch.stack([torch.isfinite(weight).all().to(device) for weight in held.values()]).tolist()
    return [name for name, is_good in zip(held, flags, strict=True) if not is_good]


def _replay(run: Run, loaded: LoadedStep) -> list[str]:
    found = []
    for batch in loaded.micro_batches:
        loss_sum = forward(run.model, batch.to(run.device)).loss_sum
        run.engine.backward(loss_sum, is_last=False, divisor=loaded.step.num_label_tokens)
        parameter = run.engine.bad_gradient()
        if parameter:
            found.append(_place(run, batch, f"parameter {parameter}"))
        run.engine.drop()
    return [place for places in run.world.gather(found) for place in places]


def _place(run: Run, batch: MicroBatch, what: str) -> str:
    rows = ", ".join(run.name_rows(batch.sample_ids)[:MOST_ROWS])
    return f"rank {run.world.rank}, rows {rows or 'none'}: {what}"
