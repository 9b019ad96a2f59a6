"""A gradient norm far above the last ones: skip the step, or stop.

A spike is a norm above ten times the median of the last 64 accepted norms, once there are 16 of them.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from swiftlet.errors import NonFiniteError, pick
from swiftlet.train.state import TrainState


class SpikeRule(NamedTuple):
    """Whether spikes are looked for, and how many in a row are skipped before the run stops."""

    is_on: bool
    most_in_a_row: int


POLICIES = {"none": SpikeRule(False, 0), "skip": SpikeRule(True, 5), "stop": SpikeRule(True, 0)}
WINDOW, LEAST, FACTOR = 64, 16, 10.0


def is_spike(rule: SpikeRule, state: TrainState, grad_norm: float) -> bool:
    """Return whether this step must be skipped; keep count of it in `state`.

    Raises:
        NonFiniteError: more spikes in a row than the rule allows.
    """
    if not rule.is_on:
        return False
    norms = state.recent_norms
    usual = statistics.median(norms) if len(norms) >= LEAST else grad_norm
    if grad_norm <= FACTOR * usual:
        state.recent_norms = [*norms, grad_norm][-WINDOW:]
        state.num_skipped_in_a_row = 0
        return False
    state.num_skipped += 1
    state.num_skipped_in_a_row += 1
    if state.num_skipped_in_a_row > rule.most_in_a_row:
        raise NonFiniteError(
            f"the gradient norm {grad_norm:.3g} of step {state.global_step + 1} is a spike: the last ones were about "
            f"{usual:.3g}; {state.num_skipped_in_a_row} in a row, nothing was updated",
            "lower --learning_rate, or look at the rows of this step",
        )
    return True


def find_policy(name: str) -> SpikeRule:
    """Return the rule of this name.

    Raises:
        UsageError: no rule has this name.
    """
    return pick(POLICIES, name, "--spike_policy")
