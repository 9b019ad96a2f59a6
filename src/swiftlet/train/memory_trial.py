"""The largest micro-batch of the run first: memory that is too small shows in seconds, and nothing grows later.

Forward and backward, then the gradient is dropped: no weight, no optimizer state and no random number of the run is
touched, so the run is the same in every bit with and without it. All ranks try the same samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from swiftlet import heartbeat, log
from swiftlet.data.batching import MicroBatch
from swiftlet.errors import OutOfMemoryError
from swiftlet.parallel.engine import Engine
from swiftlet.train.objective import LanguageModel, forward

HINT = "lower --micro_batch_tokens or --max_length, or add --gradient_checkpointing true"


@dataclass(frozen=True)
class MemoryPlan:
    """What is known of a run's memory before its first step.

    Args:
        largest: the largest micro-batch; None tries nothing.
        breakdown: one line of what the memory is for.
        hint: what to type when it is not enough.
    """

    largest: MicroBatch | None = None
    breakdown: str = ""
    hint: str = HINT

    def error(self, where: str, num_tokens: int) -> OutOfMemoryError:
        """Return the error of a device that has too little memory."""
        more = f"; by the plan: {self.breakdown}" if self.breakdown else ""
        return OutOfMemoryError(f"out of memory {where} has {num_tokens} tokens{more}", self.hint)


def try_largest(memory: MemoryPlan, model: LanguageModel, engine: Engine, device: torch.device) -> None:
    """Run the largest micro-batch forward and backward and forget it.

    Raises:
        OutOfMemoryError: the device has too little memory for it.
    """
    if memory.largest is None:
        return
    heartbeat.beat("load")
    num_tokens = len(memory.largest.input_ids_T)
    indices = [] if device.type == "cpu" else [device.index or 0]
    try:
        with torch.random.fork_rng(indices, device_type=device.type):
            losses = forward(model, memory.largest.to(device))
            engine.backward(losses.loss_sum, is_last=True, divisor=num_tokens)
            engine.drop()
    except torch.OutOfMemoryError as error:
        raise memory.error("before the first step: the largest micro-batch of the run", num_tokens) from error
    log.info(f"the largest micro-batch, {num_tokens} tokens, fits")
