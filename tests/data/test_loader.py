"""Steps prepared by threads: the same order for any number of them, and no failure that is silent."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest

from swiftlet.data import loader
from swiftlet.data.batching import Batches
from swiftlet.data.cutting import Schedule
from swiftlet.data.loader import load_steps
from swiftlet.errors import SwiftletError


class Store:
    """Thirty samples; `broken` is one that cannot be read, `stuck` one that is never delivered."""

    def __init__(self, broken=-1, stuck=-1):
        self.lengths = np.arange(2, 32, dtype=np.int32)
        self.num_labels = self.lengths - 1
        self.broken, self.stuck = broken, stuck
        self.release = threading.Event()

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError(5, "Input/output error", "tokens.bin")
        if index == self.stuck:
            self.release.wait(30)
        ids = np.full(self.lengths[index], index, np.int32)
        return ids, ids.copy()


def batches_of(store):
    return Batches(store, Schedule(3, 4, len(store) // 4, 17, 40))


def take(num, **settings):
    steps = load_steps(batches_of(Store()), **settings)
    taken = list(itertools.islice(steps, num))
    steps.close()
    return taken


def trace(loaded):
    return [(one.step, [batch.input_ids_T.tolist() for batch in one.micro_batches]) for one in loaded]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_order_is_the_same_for_any_number_of_threads(num_workers):
    assert trace(take(17, num_workers=num_workers)) == trace(take(17, num_workers=0))


def test_tensors_are_those_of_the_step():
    for loaded in take(3):
        assert [batch.sample_ids for batch in loaded.micro_batches] == loaded.step.micro_batches


def test_going_on_in_the_middle():
    whole = take(12, num_workers=0)
    assert trace(take(3, epoch=1, step_in_epoch=2)) == trace(whole[7 + 2 : 7 + 5])


def test_threads_leave_when_the_steps_are_closed():
    others = set(threading.enumerate())
    take(2, num_workers=3)
    started = set(threading.enumerate()) - others
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_an_error_of_reading_arrives_where_the_steps_are_used(num_workers):
    steps = load_steps(batches_of(Store(broken=11)), num_workers=num_workers)
    with pytest.raises(OSError, match="tokens.bin"):
        list(itertools.islice(steps, 8))


def test_a_thread_that_dies_is_named(monkeypatch):
    monkeypatch.setattr(loader, "FAILURES", (SwiftletError,))
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    steps = load_steps(batches_of(Store(broken=11)), num_workers=1)
    with pytest.raises(SwiftletError, match="loader-0 died before step [1-8] of epoch 1"):
        list(itertools.islice(steps, 8))


def test_a_thread_that_delivers_nothing_is_named_in_time():
    store = Store(stuck=11)
    steps = load_steps(batches_of(store), num_workers=1, timeout_s=0.2)
    with pytest.raises(SwiftletError, match="delivered nothing for 0 s: step") as caught:
        list(itertools.islice(steps, 8))
    assert "--dataloader_num_workers 0" in caught.value.hint
    store.release.set()


def test_cutting_reads_in_the_threads_too():
    store = Store(stuck=11)
    shared = replace(batches_of(store), token_cost=1 / 16)  # samples that begin alike are looked for
    with pytest.raises(SwiftletError, match="delivered nothing for 0 s: step"):
        list(itertools.islice(load_steps(shared, num_workers=1, timeout_s=0.2), 8))
    assert not store.release.is_set()
    store.release.set()
