"""The steps of a run for one rank, and the tensors of a micro-batch; `cutting.py` says which samples they have.

Shapes: T tokens of a micro-batch, its samples one after another without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from swiftlet.data.cutting import Schedule, cut, cut_alike
from swiftlet.data.prefixes import Prefixes, find_prefixes, prompt_of
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


@dataclass(frozen=True)
class Batches:
    """The steps of a run for one rank.

    Args:
        token_cost: the memory of a token beside that of a row, where the model computes equal beginnings of samples
            once; None where each token has a row of its own.
    """

    store: Samples
    schedule: Schedule
    rank: int = 0
    token_cost: float | None = None

    def step(self, epoch: int, step_in_epoch: int) -> Step:
        """Return one step of an epoch; both count from 0."""
        schedule, lengths = self.schedule, self.store.lengths
        rows = schedule.rows(len(self.store), epoch * schedule.steps_per_epoch + step_in_epoch)
        return Step(
            epoch=epoch,
            step_in_epoch=step_in_epoch,
            samples=rows.tolist(),
            num_tokens=int(lengths[rows].sum()),
            num_label_tokens=int(self.store.num_labels[rows].sum()),
            micro_batches=schedule.cuts(lengths, rows, self._cut)[self.rank],
        )

    def _cut(self, samples: list[int]) -> list[list[int]]:
        lengths, budget = self.store.lengths, self.schedule.token_budget
        if self.token_cost is None or budget == 0 or len(samples) < 2:
            return cut(samples, lengths, budget)
        prompts = [prompt_of(*predictors(*self.store[sample])) for sample in samples]
        return cut_alike(samples, lengths, budget, prompts, self.token_cost)

    def places(self, epoch: int, step_in_epoch: int) -> Iterator[Place]:
        """Yield the places of steps without end, from step `step_in_epoch` of `epoch` on; nothing is read."""
        while True:
            for number in range(step_in_epoch, self.schedule.steps_per_epoch):
                yield Place(epoch, number)
            epoch, step_in_epoch = epoch + 1, 0


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
