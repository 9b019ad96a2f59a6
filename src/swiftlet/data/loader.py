"""The next steps prepared by threads while the device works, always in order.

Threads are enough: reading a memory-mapped store and joining arrays releases the interpreter. A thread that fails
passes its error on; one that delivers nothing for `timeout_s` stops the run with its name.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator
from typing import NamedTuple

from swiftlet.data.batching import Batches, MicroBatch, Step, collate
from swiftlet.errors import SwiftletError
from swiftlet.faults import fault

DEPTH = 2
TIMEOUT_S = 300.0


class LoadedStep(NamedTuple):
    """A step and the tensors of this rank's micro-batches, on the CPU."""

    step: Step
    micro_batches: list[MicroBatch]


class _Task(NamedTuple):
    step: Step
    answer: queue.SimpleQueue[LoadedStep | BaseException]


def load(batches: Batches, step: Step) -> LoadedStep:
    """Return the tensors of one step."""
    fault("data.next", step=step.epoch * batches.steps_per_epoch + step.step_in_epoch + 1)
    return LoadedStep(step, [collate(batches.store, samples) for samples in step.micro_batches])


def load_steps(
    batches: Batches, *, epoch: int = 0, step_in_epoch: int = 0, num_workers: int = 1, timeout_s: float = TIMEOUT_S
) -> Generator[LoadedStep, None, None]:
    """Yield loaded steps without end, from `step_in_epoch` of `epoch` on, in the same order for any
    `num_workers`.

    Raises:
        SwiftletError: a thread delivered nothing for `timeout_s`.
    """
    steps = batches.steps(epoch, step_in_epoch)
    if num_workers == 0:
        for step in steps:
            yield load(batches, step)
    tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
    for number in range(num_workers):
        threading.Thread(target=_work, args=(batches, tasks), name=f"loader-{number}", daemon=True).start()
    pending: deque[_Task] = deque()
    try:
        while True:
            while len(pending) < DEPTH * num_workers:
                pending.append(_Task(next(steps), queue.SimpleQueue()))
                tasks.put(pending[-1])
            yield _receive(pending.popleft(), timeout_s)
    finally:
        for _ in range(num_workers):
            tasks.put(None)


def _work(batches: Batches, tasks: queue.SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        try:
            task.answer.put(load(batches, task.step))
        except BaseException as error:
            task.answer.put(error)


def _receive(task: _Task, timeout_s: float) -> LoadedStep:
    try:
        answer = task.answer.get(timeout=timeout_s)
    except queue.Empty:
        raise SwiftletError(
            f"the loader delivered nothing for {timeout_s:.0f} s: step {task.step.step_in_epoch} of epoch {task.step.epoch}",
            "is the disk of the token cache reachable? --dataloader_num_workers 0 shows where it waits",
        ) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer
