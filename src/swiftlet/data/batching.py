"""Which samples make a step, and how a step is cut into forward passes.

The order of an epoch follows from (seed, epoch) alone; step k of an epoch is rows [k B, (k + 1) B) of that order,
with B = batch size x accumulation x ranks, and the last step of an epoch takes all rows that are left (fewer
than B or up to 2 B - 1), so each row is seen exactly once an epoch. Every rank computes the whole plan; nothing
is communicated. How a step is cut changes speed and memory, never the gradient.

Shapes: T tokens of a micro-batch, its samples one after another without padding.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from swiftlet.data.prefixes import LEAST_SHARE, MOST_TOKENS, Beginnings, Prefixes, find_prefixes, prompt_of
from swiftlet.data.rows import IGNORE_INDEX

if TYPE_CHECKING:
    import torch  # planning uses the arithmetic alone


class Samples(Protocol):
    """What batching needs of a token store."""

    lengths: np.ndarray
    num_labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]: ...


class Step(NamedTuple):
    """One optimizer step as one rank sees it.

    `epoch` and `step_in_epoch` count from 0. `samples`, `num_tokens` and `num_label_tokens` are of all ranks;
    `micro_batches` are this rank's samples, as many micro-batches as every other rank has (an empty one
    contributes 0).
    """

    epoch: int
    step_in_epoch: int
    samples: list[int]
    num_tokens: int
    num_label_tokens: int
    micro_batches: list[list[int]]


class Place(NamedTuple):
    """Where a step is: its epoch and its number in it, from 0."""

    epoch: int
    step_in_epoch: int


class MicroBatch(NamedTuple):
    """The tensors of one forward pass: samples one after another, positions restarting.

    `targets_T[t]` is the token that position t is to predict, IGNORE_INDEX where that is not trained on. A sample ends
    with the last token that predicts a trained one. `cu_seqlens` are the boundaries of the samples: [0, len(first),
    ..., T]. `prefixes` says which tokens need to be computed once only; `mask_seed` is of dropout in the whole step.
    """

    input_ids_T: torch.Tensor
    targets_T: torch.Tensor
    position_ids_T: torch.Tensor
    cu_seqlens: list[int]
    sample_ids: list[int]
    prefixes: Prefixes | None = None
    mask_seed: int | None = None

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return the micro-batch for `device`; targets stay, as the host says which positions are trained on."""
        from swiftlet.device.transfer import send

        ids, positions = send(self.input_ids_T, device), send(self.position_ids_T, device)
        return self._replace(input_ids_T=ids, position_ids_T=positions)


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


def rows_of_step(order: np.ndarray, number: int, step_size: int, steps_per_epoch: int) -> np.ndarray:
    """Return the samples of one step of an epoch, counted from 0; the last step takes all that are left."""
    is_last = number == steps_per_epoch - 1
    return order[number * step_size : None if is_last else (number + 1) * step_size]


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


@dataclass(frozen=True)
class Batches:
    """The steps of a run for one rank.

    Args:
        step_size: samples a step over all ranks.
        token_budget: most tokens in one micro-batch; 0 puts each sample alone.
        token_cost: the memory of a token beside that of a row, where the model computes equal beginnings of samples
            once; None where each token has a row of its own.
    """

    store: Samples
    seed: int
    step_size: int
    steps_per_epoch: int
    token_budget: int
    rank: int = 0
    world_size: int = 1
    token_cost: float | None = None

    def step(self, epoch: int, step_in_epoch: int) -> Step:
        """Return one step of an epoch; both count from 0."""
        order = epoch_order(len(self.store), self.seed, epoch)
        rows = rows_of_step(order, step_in_epoch, self.step_size, self.steps_per_epoch)
        samples = [int(row) for row in rows]
        lengths, num_labels = self.store.lengths, self.store.num_labels
        cuts = [self._cut(part) for part in share(samples, lengths, self.world_size)]
        return Step(
            epoch=epoch,
            step_in_epoch=step_in_epoch,
            samples=samples,
            num_tokens=int(lengths[rows].sum()),
            num_label_tokens=int(num_labels[rows].sum()),
            micro_batches=pad_cuts(cuts)[self.rank],
        )

    def _cut(self, samples: list[int]) -> list[list[int]]:
        if self.token_cost is None or self.token_budget == 0 or len(samples) < 2:
            return cut(samples, self.store.lengths, self.token_budget)
        prompts = [prompt_of(*predictors(*self.store[sample])) for sample in samples]
        return cut_alike(samples, self.store.lengths, self.token_budget, prompts, self.token_cost)

    def places(self, epoch: int = 0, step_in_epoch: int = 0) -> Iterator[Place]:
        """Yield the places of steps without end, from step `step_in_epoch` of `epoch` on; nothing is read."""
        while True:
            for number in range(step_in_epoch, self.steps_per_epoch):
                yield Place(epoch, number)
            epoch, step_in_epoch = epoch + 1, 0

    def steps(self, epoch: int = 0, step_in_epoch: int = 0) -> Iterator[Step]:
        """Yield the steps at these places."""
        return (self.step(*place) for place in self.places(epoch, step_in_epoch))


def predictors(ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a sample up to the last that predicts a trained one, and the target of each.

    The others are seen by none of them, so no loss depends on them; where nothing is trained on, one token is left.

    Args:
        labels: of each token itself: the token, or IGNORE_INDEX where its prediction is not trained on.
    """
    trained = np.flatnonzero(labels[1:] != IGNORE_INDEX)
    if not len(trained):
        return ids[:1], np.full_like(ids[:1], IGNORE_INDEX)
    end = int(trained[-1]) + 1
    return ids[:end], labels[1 : end + 1]


def collate(store: Samples, sample_ids: Sequence[int], *, shares: bool = False) -> MicroBatch:
    """Return the samples as one micro-batch; no samples give one token without a target, which contributes 0.

    Equal beginnings of the samples are looked for where the model `shares` them.
    """
    import torch

    if not sample_ids:
        zero = torch.zeros(1, dtype=torch.long)
        return MicroBatch(zero, torch.full_like(zero, IGNORE_INDEX), zero, [0, 1], [])
    samples = [predictors(*store[i]) for i in sample_ids]
    ids, targets = ([np.asarray(part, np.int64) for part in parts] for parts in zip(*samples, strict=True))
    ends = np.cumsum([len(part) for part in ids])
    prefixes = None
    if shares and len(ids) > 1:
        prefixes = find_prefixes(ids, [prompt_of(*sample) for sample in samples])
    return MicroBatch(
        torch.from_numpy(np.concatenate(ids)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate([np.arange(len(part)) for part in ids])),
        [0, *ends.tolist()],
        list(sample_ids),
        prefixes,
    )
