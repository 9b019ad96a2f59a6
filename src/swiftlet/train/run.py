"""What the loop holds in its hands: finished objects, and when what is due. It names no device, back end or setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch

from swiftlet.data.loader import LoadedStep
from swiftlet.parallel.engine import Engine
from swiftlet.parallel.world import World
from swiftlet.train.checkpoint import Saver
from swiftlet.train.evaluate import Asked, Goal, Scores
from swiftlet.train.memory_trial import MemoryPlan
from swiftlet.train.objective import LanguageModel
from swiftlet.train.report import Report
from swiftlet.train.signals import StopRequest
from swiftlet.train.spikes import SpikeRule
from swiftlet.train.state import TrainState

Evaluate = Callable[[Asked], Scores | None]


class Silence:
    """The report of every rank but 0, which has `report.Report`: nothing is counted or written."""

    def step(self, state: TrainState, num_tokens: int) -> None:
        """Count a step for the speed and move the progress bar."""

    def log(self, state: TrainState, figures: Scores) -> None:
        """Write one training line."""

    def evaluation(self, state: TrainState, scores: Scores) -> None:
        """Write one evaluation line."""

    def resume_clock(self, pause: str = "") -> None:
        """Do not count the time since the last step as training time."""


@dataclass(frozen=True)
class Every:
    """When something is due: after every `steps` steps (0: never), at the end of an epoch, or on the last step."""

    steps: int = 0
    at_epoch_end: bool = False
    at_first: bool = False

    def __call__(self, state: TrainState) -> bool:
        """Return whether it is due after the step just made."""
        if not self.steps and not self.at_epoch_end:
            return False
        step = state.global_step
        on_count = bool(self.steps) and step % self.steps == 0
        on_epoch = self.at_epoch_end and state.is_epoch_end
        return on_count or on_epoch or state.is_done or (self.at_first and step == 1)

    def times_left(self, state: TrainState) -> int:
        """Return how often it is due in the steps to come."""
        every = state.steps_per_epoch if self.at_epoch_end else self.steps
        if not every or state.is_done:
            return 0
        return math.ceil(state.num_steps / every) - state.global_step // every


@dataclass(frozen=True)
class Run:
    """All that training holds in its hands.

    Args:
        load_steps: (epoch, step in epoch) to the loaded steps from there on.
        learning_rate: step, counted from 0, to the share of the peak rate.
        evaluate, saver: None for no evaluation and no checkpoints. An evaluation gives None where, asked between its
            parts, a rank was to stop.
        name_rows: sample ids to the names of their rows, for messages.
        memory: the largest micro-batch, which is tried first, and what the memory is for.
    """

    model: LanguageModel
    engine: Engine
    world: World
    device: torch.device
    load_steps: Callable[[int, int], Generator[LoadedStep, None, None]]
    learning_rate: Callable[[int], float]
    report: Report | Silence
    stop: StopRequest
    evaluate: Evaluate | None = None
    saver: Saver | None = None
    goal: Goal = Goal()
    log_when: Every = Every(5, at_first=True)
    evaluate_when: Every = Every()
    save_when: Every = Every()
    max_grad_norm: float = 0.5
    spikes: SpikeRule = SpikeRule(False, 0)
    name_rows: Callable[[Sequence[int]], list[str]] = lambda ids: [str(i) for i in ids]
    memory: MemoryPlan = MemoryPlan()
