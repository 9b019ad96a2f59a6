"""AdamW for weights in bf16 that loses no update.

A step of a full fine-tuning is often smaller than half the distance between two bf16 numbers, and rounding to the
nearest would drop it, step after step; the second moment, which moves by a thousandth a step, would stand still
likewise. Here the arithmetic is fp32 and both are rounded up or down at random, in proportion to the distance, so that
the expected value is exact and no byte of memory is added. Source: Gupta et al. 2015, "Deep Learning with Limited
Numerical Precision", section 3; Zamirai et al. 2020, "Revisiting BFloat16 Training".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 2**24  # elements of a pass: temporary copies are of one chunk, not of the largest matrix
LOWER_HALF = 2**16
SEED = 20_240_501


def round_randomly(target: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Write fp32 `values` into a bf16 `target` of the same shape, rounded up with the probability that keeps the mean.

    bf16 is the upper half of fp32's bits: a random lower half is added, and the lower half is cut off. `values` is
    overwritten.
    """
    noise = torch.rand(values.shape, device=values.device, generator=generator).mul_(LOWER_HALF)
    bits = values.view(torch.int32).add_(noise.to(torch.int32))
    target.copy_(bits.view(torch.bfloat16).unflatten(-1, (-1, 2))[..., 1])


class BFloat16AdamW(torch.optim.Optimizer):
    """AdamW over weights of which some are bf16; its state has the names and types of torch's.

    The random numbers follow from the number of the step alone: the same on every rank that holds the same weights, and
    after a run is resumed.

    Args:
        params: groups as torch takes them; "lr" and "weight_decay" of a group win.
    """

    def __init__(
        self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None
        generators: dict[tuple[torch.device, int], torch.Generator] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                number = int(state["step"])
                key = (parameter.device, number)
                if key not in generators:
                    generators[key] = torch.Generator(parameter.device).manual_seed(SEED + number)
                tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
                for weight, grad, mean, square in _chunks(*tensors):
                    _update(weight, grad, mean, square, group, number, generators[key])


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same elements of tensors of one shape, flattened, a chunk at a time."""
    flat = [tensor.detach().view(-1) for tensor in tensors]
    yield from zip(*(one.split(CHUNK) for one in flat), strict=True)


def _update(
    weight: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    group: dict[str, Any],
    step: int,
    generator: torch.Generator,
) -> None:
    """Do one step of AdamW on flat tensors. Source: Loshchilov and Hutter 2019, algorithm 2."""
    beta1, beta2 = group["betas"]
    grad = grad.float()
    wide_mean = mean.float().lerp_(grad, 1 - beta1)
    wide_square = square.float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    mean.copy_(wide_mean)  # it moves by a tenth a step: to the nearest is near enough
    change = wide_square.div(1 - beta2**step).sqrt_().add_(group["eps"])
    change = torch.div(wide_mean, change, out=change)
    _store(square, wide_square, generator)
    wide = weight.float().mul_(1 - group["lr"] * group["weight_decay"])
    _store(weight, wide.sub_(change, alpha=group["lr"] / (1 - beta1**step)), generator)


def _store(target: Tensor, values: Tensor, generator: torch.Generator) -> None:
    if target.dtype == torch.bfloat16:
        round_randomly(target, values, generator)
    else:
        target.copy_(values)
