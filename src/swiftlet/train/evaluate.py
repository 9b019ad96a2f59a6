"""Loss and token accuracy over a validation set, in padding-free micro-batches spread over the ranks.

Sums are added as Python floats in one fixed order, so the figures do not depend on the number of ranks beyond
rounding. Which evaluation is the better one, and when there has been no gain for too long, is decided here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from swiftlet import heartbeat
from swiftlet.data.batching import Samples, collate
from swiftlet.data.cutting import cut
from swiftlet.errors import DataError, UsageError
from swiftlet.faults import fault
from swiftlet.parallel.world import World
from swiftlet.train.objective import LanguageModel, forward
from swiftlet.train.state import TrainState

Scores = dict[str, float]
Asked = Callable[[], bool]


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on `store`.

    Args:
        token_budget: most tokens in one micro-batch; 0 puts each sample alone.
        more_scores: further figures, such as those of generated answers; called on every rank with the question whether
            this rank was asked to stop; None where any rank was.
        is_in_step: a forward pass takes all ranks, so they must stop after the same one.
    """

    model: LanguageModel
    store: Samples
    token_budget: int
    world: World
    device: torch.device
    more_scores: Callable[[Asked], Scores | None] | None = None
    is_in_step: bool = False

    def __call__(self, is_asked: Asked = lambda: False) -> Scores | None:
        """Return eval_loss, eval_acc and the further figures; None on every rank where one of them was asked to stop.

        Args:
            is_asked: whether this rank was asked to stop; a stop must not wait for an evaluation that may be long.

        Raises:
            DataError: no token of the validation set has a label.
        """
        fault("eval")
        self.model.train(False)
        try:
            with torch.no_grad():
                scores = self._token_scores(is_asked)
            if scores is not None and self.more_scores is not None:
                more = self.more_scores(is_asked)
                scores = None if more is None else scores | {f"eval_{name}": more[name] for name in more}
        finally:
            self.model.train(True)
        return scores

    def _token_scores(self, is_asked: Asked) -> Scores | None:
        sums = torch.zeros(3, dtype=torch.float64)
        for number, samples in enumerate(self._micro_batches()):
            fault("eval.batch", step=number)
            if self.world.agree(is_asked()) if self.is_in_step else is_asked():
                break
            heartbeat.tick()
            batch = collate(self.store, samples, shares=True).to(self.device)
            losses = forward(self.model, batch)
            row = [losses.loss_sum, losses.num_correct, losses.num_tokens]
            sums += torch.tensor([float(value) for value in row], dtype=torch.float64)
        if self.world.agree(is_asked()):
            return None
        loss, correct, tokens = (
            math.fsum(column) for column in zip(*self.world.gather(sums.tolist()), strict=True)
        )
        if tokens == 0:
            raise DataError(
                "no token of the validation set has a label", "check --val_dataset and --max_length"
            )
        return {"eval_loss": loss / tokens, "eval_acc": correct / tokens}

    def _micro_batches(self) -> list[list[int]]:
        every = cut(range(len(self.store)), self.store.lengths, self.token_budget)
        rank, size = self.world.rank, self.world.world_size
        return [
            every[i] if i < len(every) else [] for i in range(rank, len(every) + -len(every) % size, size)
        ]


@dataclass(frozen=True)
class Goal:
    """The figure that tells the better checkpoint; `patience` evaluations without a gain end the run (None: never)."""

    metric: str = "eval_loss"
    is_greater_better: bool = False
    patience: int | None = None

    def is_better(self, new: float | None, old: float | None) -> bool:
        """Return whether `new` beats `old`; anything beats None, and a value that is not finite beats nothing."""
        if new is None or not math.isfinite(new):
            return False
        return old is None or (new > old if self.is_greater_better else new < old)

    def note(self, state: TrainState, scores: Scores) -> None:
        """Write an evaluation into `state`.

        Raises:
            UsageError: the evaluation has no figure of this name.
        """
        if self.metric not in scores:
            raise UsageError(
                f"the evaluation has no {self.metric}", "choose one of " + ", ".join(sorted(scores))
            )
        state.metric, state.metric_step = scores[self.metric], state.global_step
        if self.is_better(state.metric, state.best_seen):
            state.best_seen, state.num_evaluations_without_gain = state.metric, 0
        else:
            state.num_evaluations_without_gain += 1

    def is_over(self, state: TrainState) -> bool:
        """Return whether there has been no gain for `patience` evaluations."""
        return self.patience is not None and state.num_evaluations_without_gain >= self.patience
