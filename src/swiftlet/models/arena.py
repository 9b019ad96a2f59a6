"""Memory for the large tensors of a CPU: one region, in which what is freed joins its neighbours.

glibc looks for an aligned block in holes that are larger by the alignment, so a freed tensor leaves a hole that none of
the same size finds, and small blocks that are put beside it keep holes from joining: a run takes a third more memory
than its tensors have. Here are large tensors alone, mostly freed in the order opposite to that in which they were made,
and their pages stay from one step to the next; `trim` gives them back.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64
SMALLEST, SEGMENT = 2**16, 2**30  # what is smaller is torch's; address space that is taken at once


class _Segment:
    """Address space and its free spans, in ascending order; two of them never touch."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a hint: a kernel may have no large pages
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.starts, self.ends = [0], [size]

    def take(self, size: int) -> int | None:
        """Return where `size` bytes begin in the first span that has them, None where none has."""
        for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            if end - start < size:
                continue
            self.starts[number] = start + size
            if end - start == size:
                del self.starts[number], self.ends[number]
            return start
        return None

    def give_back(self, start: int, size: int) -> None:
        """Let a span be free again."""
        end, number = start + size, bisect_left(self.starts, start)
        if number < len(self.starts) and self.starts[number] == end:
            self.starts[number] = start
        else:
            self.starts.insert(number, start)
            self.ends.insert(number, end)
        if number and self.ends[number - 1] == start:
            self.ends[number - 1] = self.ends[number]
            del self.starts[number], self.ends[number]

    def trim(self) -> None:
        """Give the whole pages of free spans back to the system."""
        for start, end in zip(self.starts, self.ends, strict=True):
            first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self.memory.madvise(mmap.MADV_DONTNEED, first, last - first)


class _Block(np.ndarray):
    """Bytes of a segment, free again when nothing refers to them."""

    freed: deque[tuple[_Segment, int, int]]
    span: tuple[_Segment, int, int]

    def __del__(self) -> None:
        """Say so; whoever takes memory next sees it, as this may run within that."""
        self.freed.append(self.span)


class Arena:
    """Memory for tensors that are freed in whatever thread; it grows by segments and is kept."""

    def __init__(self) -> None:
        self.segments: list[_Segment] = []
        self.freed: deque[tuple[_Segment, int, int]] = deque()
        self.lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """Return `size` bytes of any content; they are free again when the last tensor over them is gone.

        Raises:
            torch.OutOfMemoryError: the system has no address space for them.
        """
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        with self.lock:
            self._collect()
            segment, start = self._find(rounded)
        block = _Block((size,), np.uint8, segment.memory, start)
        block.freed, block.span = self.freed, (segment, start, rounded)
        return block

    def trim(self) -> None:
        """Give the pages of what is free back to the system; the address space stays."""
        with self.lock:
            self._collect()
            for segment in self.segments:
                segment.trim()

    def _collect(self) -> None:
        while self.freed:
            segment, start, length = self.freed.popleft()
            segment.give_back(start, length)

    def _find(self, size: int) -> tuple[_Segment, int]:
        for segment in self.segments:
            start = segment.take(size)
            if start is not None:
                return segment, start
        self.segments.append(_new_segment(size))
        return self._find(size)


def _new_segment(size: int) -> _Segment:
    """Return a segment for `size` bytes, of no more than them where address space is limited."""
    for length in (max(SEGMENT, size), size):
        with suppress(OSError):
            return _Segment(length)
    raise torch.OutOfMemoryError(f"the system has no memory for {size} bytes more")


_arena = Arena()


def _is_ours(like: Tensor, size: int) -> bool:
    is_plain = type(like) in (Tensor, torch.nn.Parameter)  # those of a trace have no memory
    return is_plain and like.device.type == "cpu" and size >= SMALLEST


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a contiguous tensor of any content with the type and device of `like`.

    Small tensors, those of other devices and those without memory (of a trace) are torch's.
    """
    size = torch.Size(shape).numel() * like.element_size()
    if not _is_ours(like, size):
        return like.new_empty(shape)
    # resized and not viewed: what is a view cannot be changed in place within a graph without a copy
    return torch.frombuffer(_arena.take(size), dtype=like.dtype).resize_(shape)


def empty_like(x: Tensor) -> Tensor:
    """Return a tensor of any content that is like x, its axes in the same order in memory."""
    if x.is_contiguous():
        return empty(x.shape, x)
    if not _is_ours(x, x.numel() * x.element_size()):
        return torch.empty_like(x)
    strides = torch.empty_like(x, device="meta").stride()
    return empty(x.shape, x).as_strided_(x.shape, strides)


def trim() -> None:
    """Give memory that no tensor has back to the system: for when another part of a run begins."""
    _arena.trim()
