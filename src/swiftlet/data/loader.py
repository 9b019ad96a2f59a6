"""The next steps prepared by threads while the device works, always in order.

Threads are enough: reading a store and joining arrays releases the interpreter. A thread that fails
passes its error on; one that dies, or delivers nothing for `timeout_s`, stops the run with its name.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from swiftlet.data.batching import Batches, MicroBatch, Place, Step, collate
from swiftlet.errors import SwiftletError
from swiftlet.faults import fault

DEPTH = 2
TIMEOUT_S = 300.0
GLANCE_S = 0.5
FAILURES = (SwiftletError, OSError, RuntimeError, ValueError, LookupError, TypeError, MemoryError)


class LoadedStep(NamedTuple):
    """A step and the tensors of this rank's micro-batches, on the CPU."""

    step: Step
    micro_batches: list[MicroBatch]


class _Task(NamedTuple):
    place: Place
    answer: queue.SimpleQueue[LoadedStep | BaseException]


def load(batches: Batches, place: Place) -> LoadedStep:
    """Return the tensors of one step; cutting it may read its samples too."""
    fault("data.next", step=place.epoch * batches.schedule.steps_per_epoch + place.step_in_epoch + 1)
    step = batches.step(*place)
    key = np.random.SeedSequence([batches.schedule.seed, step.epoch, step.step_in_epoch])
    seed = int(key.generate_state(1, np.uint64)[0])
    parts = (collate(batches.store, samples, shares=True) for samples in step.micro_batches)
    return LoadedStep(step, [part._replace(mask_seed=seed) for part in parts])


def load_steps(
    batches: Batches,
    *,
    epoch: int = 0,
    step_in_epoch: int = 0,
    num_workers: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> Generator[LoadedStep, None, None]:
    """Yield loaded steps without end, from `step_in_epoch` of `epoch` on, in the same order for any `num_workers`.

    Raises:
        SwiftletError: a thread died, or delivered nothing for `timeout_s`.
    """
    places = batches.places(epoch, step_in_epoch)
    if num_workers == 0:
        for place in places:
            yield load(batches, place)
    tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(batches, tasks), name=f"loader-{number}", daemon=True)
        for number in range(num_workers)
    ]
    pending: deque[_Task] = deque()
    try:
        for thread in threads:
            thread.start()
        while True:
            while len(pending) < DEPTH * num_workers:
                pending.append(_Task(next(places), queue.SimpleQueue()))
                tasks.put(pending[-1])
            yield _receive(pending.popleft(), threads, timeout_s)
    finally:
        for _ in threads:
            tasks.put(None)


def _work(batches: Batches, tasks: queue.SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        try:
            task.answer.put(load(batches, task.place))
        except FAILURES as error:
            task.answer.put(error)


def _receive(task: _Task, threads: list[threading.Thread], timeout_s: float) -> LoadedStep:
    glance_s, waited_s = min(GLANCE_S, timeout_s), 0.0  # by no clock: it runs on while a process is suspended
    name = f"step {task.place.step_in_epoch + 1} of epoch {task.place.epoch + 1}"
    while True:
        try:
            answer = task.answer.get(timeout=glance_s)
        except queue.Empty:
            waited_s += glance_s
            dead = [thread.name for thread in threads if not thread.is_alive()]
            if dead:
                raise SwiftletError(
                    f"{', '.join(dead)} died before {name}", "its traceback is above"
                ) from None
            if waited_s >= timeout_s:
                raise SwiftletError(
                    f"the loader delivered nothing for {timeout_s:.0f} s: {name}",
                    "is the disk of the token cache reachable? --dataloader_num_workers 0 shows where it waits",
                ) from None
            continue
        if isinstance(answer, BaseException):
            raise answer
        return answer
