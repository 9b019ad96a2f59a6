"""All that a restart needs besides weights and optimizer state; written to trainer_state.json.

It holds no time and no path of this machine, so a resumed run writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields

from swiftlet.errors import CheckpointError


@dataclass
class Totals:
    """Sums over the steps since the last log line."""

    loss: float = 0.0
    num_correct: int = 0
    num_label_tokens: int = 0
    num_tokens: int = 0
    num_steps: int = 0


@dataclass
class TrainState:
    """Where a run stands: the next step is `step_in_epoch` of `epoch`, both counted from 0.

    `best_*` are of the best evaluated checkpoint, `best_seen` is the best evaluation whether saved or not.
    `num_steps`, `step_size` and `steps_per_epoch` are fixed at the start, so a run resumed on another number of
    devices keeps its order of samples and its learning rates.
    """

    num_steps: int
    step_size: int
    steps_per_epoch: int
    seed: int = 42
    global_step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    num_tokens: int = 0
    num_label_tokens: int = 0
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0
    metric: float | None = None
    metric_step: int = 0
    best_metric: float | None = None
    best_step: int = 0
    best_seen: float | None = None
    num_evaluations_without_gain: int = 0
    recent_norms: list[float] = field(default_factory=list)
    since_log: Totals = field(default_factory=Totals)

    @property
    def is_done(self) -> bool:
        """Whether all steps are made."""
        return self.global_step >= self.num_steps

    @property
    def is_epoch_end(self) -> bool:
        """Whether the last step made was the last one of an epoch."""
        return self.global_step > 0 and self.step_in_epoch == 0

    @property
    def epochs_done(self) -> float:
        """The epochs made so far, with a fraction."""
        return self.epoch + self.step_in_epoch / self.steps_per_epoch

    def advance(self, num_tokens: int, num_label_tokens: int) -> None:
        """Count one step."""
        self.global_step += 1
        self.num_tokens += num_tokens
        self.num_label_tokens += num_label_tokens
        self.step_in_epoch += 1
        if self.step_in_epoch == self.steps_per_epoch:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def to_json(self) -> str:
        """Return the state as text; equal states give equal texts."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def parse_state(text: str) -> TrainState:
    """Return the state that `to_json` wrote.

    Raises:
        CheckpointError: a field is missing or unknown; another version wrote it.
    """
    content = json.loads(text)
    known = {f.name for f in fields(TrainState)}
    if not isinstance(content, dict) or set(content) != known:
        names = set(content) if isinstance(content, dict) else set()
        raise CheckpointError(
            f"trainer_state.json was written by another version: {sorted(names ^ known)} differ",
            "resume with the version that wrote it, or start a new run",
        )
    return TrainState(**{**content, "since_log": Totals(**content["since_log"])})
