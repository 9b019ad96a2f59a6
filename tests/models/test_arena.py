"""Memory for large tensors of a CPU: none overlaps another, freed spans join, and other devices have their own."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swiftlet.models import arena
from swiftlet.models.arena import SMALLEST, Arena, empty, empty_like

LIKE = torch.zeros(1)
MIB = 2**20


def spans(one: Arena) -> list[tuple[int, int]]:
    """Return what is free of the first segment, once nothing is waiting to be given back."""
    one.take(64)
    one.take(0)
    (segment,) = one.segments
    return list(zip(segment.starts, segment.ends, strict=True))


def taken(one: Arena, size: int) -> torch.Tensor:
    return torch.frombuffer(one.take(size), dtype=torch.uint8)


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(arena, "SEGMENT", 4 * MIB)


@pytest.mark.usefixtures("small_segments")
def test_what_is_freed_joins_its_neighbours_in_any_order():
    for seed in range(20):
        one, order = Arena(), random.Random(seed)
        blocks = [one.take(order.randrange(1, 300_000)) for _ in range(12)]
        order.shuffle(blocks)
        while blocks:
            blocks.pop()
        assert spans(one) == [(0, 4 * MIB)]


@pytest.mark.usefixtures("small_segments")
def test_live_blocks_never_overlap_and_are_aligned():
    one, order, live = Arena(), random.Random(0), {}
    for number in range(3000):
        if live and order.random() < 0.5:
            mark = order.choice(list(live))
            assert (live.pop(mark) == mark % 251).all()
        else:
            live[number] = taken(one, order.randrange(1, 200_000)).fill_(number % 251)
            assert live[number].data_ptr() % arena.ALIGNMENT == 0
    for mark, block in live.items():
        assert (block == mark % 251).all()


@pytest.mark.usefixtures("small_segments")
def test_a_block_larger_than_a_segment_gets_one_of_its_own():
    one = Arena()
    first, large = one.take(MIB), one.take(9 * MIB)
    assert [len(segment.memory) for segment in one.segments] == [4 * MIB, 9 * MIB]
    assert (len(first), len(large)) == (MIB, 9 * MIB)


def test_memory_lives_as_long_as_a_view_of_the_tensor():
    whole = empty((4, SMALLEST), LIKE)
    row, address = whole[1].fill_(7), whole.data_ptr()
    del whole
    other = empty((4, SMALLEST), LIKE).fill_(1)
    assert other.data_ptr() != address
    assert (row == 7).all()
    del row
    assert empty((4, SMALLEST), LIKE).data_ptr() == address


def test_memory_lives_as_long_as_a_graph_has_it():
    x = torch.ones(SMALLEST, requires_grad=True)
    saved = empty((SMALLEST,), LIKE).fill_(3)
    loss = (x * saved).sum()
    del saved
    empty((SMALLEST,), LIKE).fill_(5)
    loss.backward()
    assert (x.grad == 3).all()


def test_a_tensor_is_no_view_so_it_may_be_changed_in_place_within_a_graph():
    result = empty((2, SMALLEST), LIKE).fill_(1)
    assert not result._is_view()
    assert result.is_contiguous()
    assert result.untyped_storage().nbytes() == 2 * SMALLEST * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_types(dtype):
    found = empty((3, SMALLEST), torch.zeros(1, dtype=dtype))
    assert (found.dtype, found.shape) == (dtype, (3, SMALLEST))


def test_axes_keep_their_order_in_memory():
    heads = torch.zeros(1, 700, 5, 32).transpose(1, 2)
    assert empty_like(heads).stride() == heads.stride()
    assert empty_like(heads[:, 1:3]).stride() == torch.empty_like(heads[:, 1:3]).stride()
    parameter = torch.nn.Parameter(torch.zeros(300, 300))
    assert not empty_like(parameter).requires_grad


def test_threads_may_take_and_free_at_once():
    one, failures = Arena(), []

    def work(mark: int) -> None:
        for _ in range(300):
            blocks = [taken(one, 70_000 + mark).fill_(mark) for _ in range(3)]
            if not all((block == mark).all() for block in blocks):
                failures.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert spans(one) == [(0, arena.SEGMENT)]


def test_small_tensors_and_those_of_other_devices_are_torchs(monkeypatch):
    def refuse(self: Arena, size: int) -> np.ndarray:
        raise AssertionError(size)

    monkeypatch.setattr(Arena, "take", refuse)
    assert empty((4, 4), LIKE).shape == (4, 4)
    meta = torch.zeros(1, device="meta")
    assert empty((400, 4000), meta).device.type == "meta"
    with FakeTensorMode():
        fake = empty((400, 4000), torch.zeros(1))
    assert isinstance(fake, FakeTensor)


@pytest.mark.parametrize(("value", "is_asked"), [("1", True), ("0", False)])
def test_pages_are_asked_to_be_large_unless_the_user_said_otherwise(monkeypatch, value, is_asked):
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no large pages")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", value)
    block = Arena().take(64)
    assert ("hg" in flags_of(block.ctypes.data)) == is_asked


def test_a_kernel_without_large_pages_is_no_reason_to_stop(monkeypatch):
    class Refusing(arena.mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    monkeypatch.setattr(arena.mmap, "mmap", Refusing)
    assert len(Arena().take(64)) == 64


def test_little_address_space_is_taken_by_the_tensor_and_none_is_out_of_memory(monkeypatch):
    class Limited(arena.mmap.mmap):
        def __new__(cls, fileno: int, length: int, **options: int) -> Limited:
            if length > 3 * MIB:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return super().__new__(cls, fileno, length, **options)

    monkeypatch.setattr(arena.mmap, "mmap", Limited)
    one = Arena()
    assert len(taken(one, 2 * MIB)) == 2 * MIB
    with pytest.raises(torch.OutOfMemoryError, match=str(4 * MIB)):
        one.take(4 * MIB)


def test_pages_of_what_is_free_go_back_to_the_system_and_live_tensors_stay():
    one = Arena()
    first, second, third = (taken(one, 8 * MIB).fill_(mark) for mark in (1, 2, 3))
    held = resident()
    del second
    one.trim()
    assert resident() < held - 7 * MIB
    assert (first == 1).all()
    assert (third == 3).all()
    assert (taken(one, 8 * MIB).fill_(4) == 4).all()


def resident() -> int:
    """Return the bytes of this process in memory. Source: proc(5), statm."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flags_of(address: int) -> list[str]:
    """Return the kernel's flags of the mapping that holds an address. Source: proc(5), smaps."""
    is_it = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if "-" in first:
            start, _, end = first.partition("-")
            is_it = int(start, 16) <= address < int(end, 16)
        elif is_it and first == "VmFlags:":
            return rest
    raise AssertionError(hex(address))
