"""One optimizer step: forward and backward over its micro-batches, one host sync, a check, the update.

The gradient is that of the sum of token losses over all micro-batches and ranks, divided once by the number of
trained tokens of the whole step. A step's random numbers (noise, dropout of what does not know its rows) follow from
(seed, step, rank), so evaluation and restarts do not change them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from swiftlet.data.batching import MicroBatch, Step
from swiftlet.data.loader import LoadedStep
from swiftlet.data.prefixes import Prefixes
from swiftlet.errors import DataError
from swiftlet.faults import fault
from swiftlet.parallel.engine import Engine
from swiftlet.parallel.world import World


class TokenLosses(Protocol):
    """What a model returns: sums over the trained tokens of a micro-batch, as scalars on the device."""

    loss_sum: torch.Tensor
    num_correct: torch.Tensor
    num_tokens: torch.Tensor | int


class LanguageModel(Protocol):
    """A model over padding-free micro-batches; the target of a token is the one after it."""

    def __call__(
        self,
        input_ids_T: torch.Tensor,
        position_ids_T: torch.Tensor,
        cu_seqlens: list[int],
        targets_T: torch.Tensor,
        prefixes: Prefixes | None = None,
        mask_seed: int | None = None,
    ) -> TokenLosses: ...

    def train(self, mode: bool = True) -> object: ...

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]: ...


class Gradient(NamedTuple):
    """What the micro-batches of a step gave, before the update; floats are sums over ranks.

    `micro_losses` are this rank's, still on the device: they are looked at only when something is wrong.
    """

    loss_sum: float
    num_correct: int
    grad_norm: float
    is_stop_requested: bool
    micro_losses: list[torch.Tensor]


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch on the host and on the device of this process from (seed, step, rank).

    torch.manual_seed would write down the whole stack for each kind of device that is not in use, at every step.
    """
    state = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(state)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(state)


def forward(model: LanguageModel, batch: MicroBatch) -> TokenLosses:
    """Return the token losses of one micro-batch."""
    ids_T, targets_T, positions_T, cu_seqlens, _, prefixes, mask_seed = batch
    return model(ids_T, positions_T, cu_seqlens, targets_T, prefixes, mask_seed)


def check_labels(step: Step) -> None:
    """Check that there is something to learn in a step.

    Raises:
        DataError: every label of the step is masked.
    """
    if step.num_label_tokens == 0:
        raise DataError(
            f"no token of step {step.step_in_epoch + 1} of epoch {step.epoch + 1} is trained on: every label is masked",
            "check --template_type and --max_length",
        )


def compute_gradient(
    model: LanguageModel,
    engine: Engine,
    world: World,
    loaded: LoadedStep,
    *,
    device: torch.device,
    step: int,
    is_stop_requested: bool,
) -> Gradient:
    """Run forward and backward over the micro-batches of a step; one host sync at the end.

    Args:
        step: the number of this step, from 1.
        is_stop_requested: on this rank; the answer is for all ranks.

    Raises:
        DataError: every label of the step is masked.
    """
    check_labels(loaded.step)
    losses, counts = [], []
    last = len(loaded.micro_batches) - 1
    for number, batch in enumerate(loaded.micro_batches):
        result = forward(model, batch.to(device))
        forward_factor, backward_factor = fault("fwd", step=step), fault("bwd", step=step)
        engine.backward(
            result.loss_sum * (forward_factor * backward_factor),
            is_last=number == last,
            divisor=loaded.step.num_label_tokens,
        )
        losses.append(result.loss_sum.detach() * forward_factor)
        counts.append(torch.as_tensor(result.num_correct, device=losses[-1].device))
        # What is left of its graph ends before the next pass: one that is recorded must share no node with it.
        del result
    stop = torch.full((), float(is_stop_requested), device=losses[0].device)
    sums = torch.stack([_sum(losses), _sum(counts), stop])
    norm = engine.grad_norm().reshape(1)
    loss_sum, num_correct, stops, grad_norm = torch.cat([world.sum(sums), norm.to(sums)]).tolist()
    correct = round(num_correct) if math.isfinite(num_correct) else 0
    return Gradient(loss_sum, correct, grad_norm, stops > 0, losses)


def _sum(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([value.float() for value in values]).sum()
