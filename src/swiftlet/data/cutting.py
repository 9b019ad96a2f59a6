"""Which samples make a step, and how a step is cut into micro-batches: from lengths alone, for runs and for plans.

The order of an epoch follows from (seed, epoch) alone; step k of an epoch is rows [k B, (k + 1) B) of that order,
with B = batch size x accumulation x ranks, and the last step of an epoch takes all rows that are left (fewer
than B or up to 2 B - 1), so each row is seen exactly once an epoch. Every rank computes the whole plan; nothing
is communicated. How a step is cut changes speed and memory, never the gradient.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from swiftlet.data.prefixes import LEAST_SHARE, MOST_TOKENS, Beginnings

Cut = Callable[[list[int]], list[list[int]]]


def num_steps_per_epoch(num_samples: int, *, batch_size: int, accumulation: int, world_size: int) -> int:
    """Return the optimizer steps of one epoch, at least 1.

    Source: transformers 4.40 Trainer with accelerate's even batches: each rank has ceil(ceil(n / batch) / ranks)
    batches, of which floor(... / accumulation) make steps. So 9900 rows at 16 samples a step are 618 steps on 1 or 4
    ranks and 619 on 8.
    """
    batches_per_rank = math.ceil(math.ceil(num_samples / batch_size) / world_size)
    return max(1, batches_per_rank // accumulation)


def num_steps(steps_per_epoch: int, num_epochs: float, max_steps: int = -1) -> int:
    """Return the optimizer steps of a run: `max_steps` where given, else all of `num_epochs`."""
    return max_steps if max_steps > 0 else math.ceil(num_epochs * steps_per_epoch)


@lru_cache(maxsize=2)
def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the samples in one epoch: a permutation that follows from (seed, epoch) alone.

    The last two are kept, and are not to be written to: planning and training ask for the same ones.
    """
    key = np.random.SeedSequence([seed, epoch])
    numbers = np.arange(num_samples, dtype=np.int32 if num_samples <= np.iinfo(np.int32).max else np.int64)
    order = np.random.Generator(np.random.Philox(key)).permutation(numbers)
    order.flags.writeable = False
    return order


def share(samples: Sequence[int], lengths: np.ndarray, world_size: int) -> list[list[int]]:
    """Return the samples of each rank, balanced by tokens: the longest first, each to the rank with the fewest."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    totals = [0] * world_size
    for sample in sorted(samples, key=lambda s: (-int(lengths[s]), s)):
        rank = min(range(world_size), key=lambda r: (totals[r], len(shares[r]), r))
        shares[rank].append(sample)
        totals[rank] += int(lengths[sample])
    return shares


def cut(samples: Sequence[int], lengths: np.ndarray, token_budget: int) -> list[list[int]]:
    """Return `samples` as micro-batches of at most `token_budget` tokens, the largest micro-batch first.

    Best fit, longest sample first. A sample longer than the budget is alone; a budget of 0 puts each alone.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # what is free in each, and its number; in order
    for sample in sorted(samples, key=lambda s: (-int(lengths[s]), s)):
        length = int(lengths[sample])
        at = bisect_left(rooms, (length, 0))
        room, number = rooms.pop(at) if at < len(rooms) else (token_budget, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(sample)
        insort(rooms, (room - length, number))
    return sorted(bins, key=lambda b: -sum(int(lengths[s]) for s in b))


def cut_alike(
    samples: Sequence[int],
    lengths: np.ndarray,
    token_budget: int,
    prompts: Sequence[np.ndarray],
    token_cost: float = LEAST_SHARE,
) -> list[list[int]]:
    """Return `samples` as `cut` does, those together that begin alike: tokens that are computed once count once.

    A micro-batch of more than `token_budget` tokens has at most `MOST_TOKENS` times as many, and those that are
    computed together with what its tokens cost are at most `token_budget`.

    Args:
        prompts: what each sample may share, see data/prefixes.py.
        token_cost: the memory of a token beside that of one that is computed, at least `LEAST_SHARE`: where fewer are
            shared, all are computed.
    """
    alike = Beginnings(prompts)
    places = np.argsort(alike.order)
    sizes = lengths[list(samples)].astype(np.int64)
    bins: list[list[int]] = []
    common_BS = np.zeros((len(samples), len(samples)), np.int64)  # of each micro-batch, at most one a sample
    computed_B, tokens_B = common_BS[0].copy(), common_BS[0].copy()
    for number in sorted(range(len(samples)), key=lambda n: (-int(sizes[n]), samples[n])):
        own_B = sizes[number] - common_BS[: len(bins), number]
        computed, tokens = computed_B[: len(bins)] + own_B, tokens_B[: len(bins)] + sizes[number]
        is_shared = (computed + token_cost * tokens <= token_budget) & (tokens <= MOST_TOKENS * token_budget)
        fitting = np.flatnonzero((tokens <= token_budget) | is_shared)
        if len(fitting):
            chosen = int(fitting[np.lexsort((-computed[fitting], own_B[fitting]))[0]])
        else:
            chosen = len(bins)
            bins.append([])
        own = int(sizes[number] - common_BS[chosen, number])
        bins[chosen].append(number)
        computed_B[chosen] += own
        tokens_B[chosen] += sizes[number]
        np.maximum(common_BS[chosen], alike.common(int(places[number])), out=common_BS[chosen])
    order = sorted(range(len(bins)), key=lambda b: -int(computed_B[b]))
    return [[samples[number] for number in bins[b]] for b in order]


def pad_cuts(cuts: list[list[list[int]]]) -> list[list[list[int]]]:
    """Give every rank the same number of micro-batches: split the largest, add empty ones where none can be split."""
    most = max(len(micro_batches) for micro_batches in cuts)
    for micro_batches in cuts:
        while len(micro_batches) < most:
            number = max(range(len(micro_batches)), key=lambda n: len(micro_batches[n]), default=-1)
            if number < 0 or len(micro_batches[number]) < 2:
                micro_batches.append([])
                continue
            samples = micro_batches[number]
            micro_batches[number : number + 1] = [samples[::2], samples[1::2]]
    return cuts


class Schedule(NamedTuple):
    """What decides which samples meet in a step and in a micro-batch.

    Args:
        step_size: samples a step over all ranks.
        token_budget: most tokens in one micro-batch; 0 puts each sample alone.
    """

    seed: int
    step_size: int
    steps_per_epoch: int
    num_steps: int
    token_budget: int
    world_size: int = 1

    def rows(self, num_samples: int, step: int) -> np.ndarray:
        """Return the samples of a step, counted from 0 over all epochs; the last of an epoch has all that are left."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order, start = epoch_order(num_samples, self.seed, epoch), number * self.step_size
        return order[start : None if number == self.steps_per_epoch - 1 else start + self.step_size]

    def cuts(
        self, lengths: np.ndarray, rows: np.ndarray, cut_share: Cut | None = None
    ) -> list[list[list[int]]]:
        """Return the micro-batches of each rank for the samples of a step.

        Args:
            cut_share: cuts the samples of a rank; by their lengths alone when None.
        """
        cut_share = cut_share or (lambda samples: cut(samples, lengths, self.token_budget))
        return pad_cuts([cut_share(part) for part in share(rows.tolist(), lengths, self.world_size)])
