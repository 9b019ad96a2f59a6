"""What a run will feed to its model, from lengths alone: its largest micro-batch, and how steps are cut. No torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from swiftlet.data.cutting import Schedule, epoch_order

NEAR = 0.99  # a search ends at this share of what is possible
MOST_STEPS = 256  # that a search cuts
LEAST_LENGTH = 2
SAMPLED_STEPS = 128
# What a search looks at, of all epochs: beyond, epochs hold nothing new.
MOST_ROWS, MOST_EPOCHS = 2**23, 256


class Largest(NamedTuple):
    """The largest micro-batch of a run (within 1 %): its samples and its tokens."""

    samples: list[int]
    num_tokens: int


def spread(num_rows: int, mean: float, std: float, least: int, most: int) -> np.ndarray:
    """Return `num_rows` lengths with these statistics: a log-normal spread, cut at both ends, at even quantiles.

    The real lengths of a data set that was not read are not known; its extremes, its mean and its spread are kept.
    """
    if num_rows < 1:
        return np.zeros(0, np.int32)
    variance = np.log1p((std / mean) ** 2)
    quantiles = (np.arange(num_rows) + 0.5) / num_rows
    values = np.exp(np.log(mean) - variance / 2 + np.sqrt(variance) * _normal_quantile(quantiles))
    values = np.clip(values, max(least, LEAST_LENGTH), most)
    values[0], values[-1] = max(least, LEAST_LENGTH), most
    middle = values[1:-1]
    if len(middle):
        middle *= (mean * num_rows - values[0] - values[-1]) / max(middle.sum(), 1)
    return np.clip(np.rint(values), LEAST_LENGTH, most).astype(np.int32)


def _normal_quantile(p: np.ndarray) -> np.ndarray:
    """Return the quantiles of the normal distribution, to 5e-4. Source: Abramowitz and Stegun, 26.2.23."""
    tail = np.minimum(p, 1 - p)
    t = np.sqrt(-2 * np.log(tail))
    numerator = 2.515517 + 0.802853 * t + 0.010328 * t**2
    value = t - numerator / (1 + 1.432788 * t + 0.189269 * t**2 + 0.001308 * t**3)
    return np.where(p < 0.5, -value, value)


def largest_micro_batch(lengths: np.ndarray, schedule: Schedule) -> Largest:
    """Return the largest micro-batch over all ranks and steps of a run.

    Steps are looked at by what they could hold at most, and only the first `MOST_STEPS` of them are really cut; first
    of all one with the longest sample, which alone may make the largest micro-batch.
    """
    bounds: list[np.ndarray] = []
    longests: list[np.ndarray] = []
    sizes = np.asarray(lengths, np.int64)
    num_epochs = min(-(-schedule.num_steps // schedule.steps_per_epoch), MOST_EPOCHS)
    for epoch in range(min(num_epochs, max(1, MOST_ROWS // max(1, len(sizes))))):
        order = sizes[epoch_order(len(sizes), schedule.seed, epoch)]
        starts = np.minimum(np.arange(schedule.steps_per_epoch) * schedule.step_size, len(order) - 1)
        totals = np.add.reduceat(order, starts)
        longest = np.maximum.reduceat(order, starts)
        # The longest first, each to the rank with the fewest: nobody is far above the mean.
        ranks = schedule.world_size
        fair = totals / ranks + longest * (1 - 1 / ranks)
        bounds.append(np.minimum(fair, np.maximum(longest, schedule.token_budget)))
        longests.append(longest)
    bound, longest = (np.concatenate(parts)[: schedule.num_steps] for parts in (bounds, longests))
    best = Largest([], 0)
    for step in (longest.argmax(), *np.argsort(-bound, kind="stable")[:MOST_STEPS]):
        if best.num_tokens >= NEAR * bound[step]:
            break
        rows = schedule.rows(len(sizes), int(step))
        for micro_batches in schedule.cuts(lengths, rows):
            for samples in micro_batches:
                tokens = int(sizes[samples].sum()) if samples else 0
                if tokens > best.num_tokens:
                    best = Largest(samples, tokens)
    return best


def sampled_cuts(lengths: np.ndarray, schedule: Schedule) -> list[list[tuple[int, int, int]]]:
    """Return how some steps, evenly spread over the first epoch, are cut: (tokens, squared lengths, samples) of each
    micro-batch of the busiest rank, by step.
    """
    sizes = np.asarray(lengths, np.int64)
    known = min(schedule.steps_per_epoch, schedule.num_steps)
    steps = []
    chosen = np.unique(np.linspace(0, known - 1, min(known, SAMPLED_STEPS)).astype(int))
    for step in chosen:
        ranks = schedule.cuts(lengths, schedule.rows(len(sizes), int(step)))
        busiest = max(ranks, key=lambda parts: sum(int(sizes[samples].sum()) for samples in parts if samples))
        steps.append([_load(sizes[samples]) for samples in busiest if samples])
    return steps


def _load(sizes: np.ndarray) -> tuple[int, int, int]:
    return int(sizes.sum()), int((sizes**2).sum()), len(sizes)
