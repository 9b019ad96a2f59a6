"""The learning rate as a pure function of the step: factor(step, warmup, total), to be multiplied by the peak.

Steps count from 0, so with a warm-up the first step has rate 0, as in transformers.
Source of all formulas: transformers.optimization, the functions of the same names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from swiftlet.errors import pick

Shape = Callable[[int, int, int], float]
LAST_OF_POLYNOMIAL = 1e-7


def _progress(step: int, warmup: int, total: int) -> float:
    return (step - warmup) / max(1, total - warmup)


def constant(step: int, warmup: int, total: int) -> float:
    """Return 1."""
    return 1.0


def linear(step: int, warmup: int, total: int) -> float:
    """Fall in a straight line to 0."""
    return max(0.0, 1.0 - _progress(step, warmup, total))


def cosine(step: int, warmup: int, total: int) -> float:
    """Fall along half a cosine to 0."""
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup, total))))


def cosine_with_restarts(step: int, warmup: int, total: int, cycles: int = 1) -> float:
    """Fall along half a cosine, `cycles` times."""
    progress = _progress(step, warmup, total)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((cycles * progress) % 1.0))))


def cosine_with_min_lr(step: int, warmup: int, total: int, least: float = 0.1) -> float:
    """Fall along half a cosine to `least`."""
    return cosine(step, warmup, total) * (1.0 - least) + least


def polynomial(step: int, warmup: int, total: int, power: float = 1.0, peak: float = 1.0) -> float:
    """Fall by a power of what is left to a rate of 1e-7; `peak` is the peak rate."""
    last = LAST_OF_POLYNOMIAL / peak
    if step > total:
        return last
    return (1.0 - last) * (1.0 - _progress(step, warmup, total)) ** power + last


def inverse_sqrt(step: int, warmup: int, total: int) -> float:
    """Fall by the square root of the steps, of which the warm-up (10 000 without one) is the unit."""
    timescale = warmup or 10_000
    return 1.0 / math.sqrt((step + timescale - warmup) / timescale)


def warmup_stable_decay(step: int, warmup: int, total: int, decay_ratio: float = 0.1) -> float:
    """Stay at 1, then fall along half a cosine in the last `decay_ratio` of the steps."""
    num_decay = max(1, math.ceil(total * decay_ratio))
    into_decay = step - (total - num_decay)
    if into_decay < 0:
        return 1.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * min(1.0, into_decay / num_decay))))


SCHEDULES: dict[str, Shape] = {
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "cosine_with_min_lr": cosine_with_min_lr,
    "polynomial": polynomial,
    "constant": constant,
    "constant_with_warmup": constant,
    "inverse_sqrt": inverse_sqrt,
    "warmup_stable_decay": warmup_stable_decay,
}


def num_warmup_steps(num_steps: int, warmup_ratio: float, warmup_steps: int | None = None) -> int:
    """Return the steps of the warm-up; a number of steps wins over a ratio, which is rounded up."""
    return warmup_steps if warmup_steps is not None else math.ceil(num_steps * warmup_ratio)


def factor(step: int, shape: Shape, warmup: int, total: int) -> float:
    """Return the share of the peak rate at `step`: a straight rise during the warm-up, then the shape."""
    return step / max(1, warmup) if step < warmup else shape(step, warmup, total)


def build_schedule(name: str, *, warmup: int, total: int, peak: float = 1.0) -> Callable[[int], float]:
    """Return the schedule: step, counted from 0, to the share of the peak rate.

    `constant` has no warm-up; the others do.

    Raises:
        UsageError: no schedule has this name.
    """
    shape = pick(SCHEDULES, name, "--lr_scheduler_type")
    if name == "polynomial":
        shape = partial(polynomial, peak=peak)
    return partial(factor, shape=shape, warmup=0 if name == "constant" else warmup, total=total)
