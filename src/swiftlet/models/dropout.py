"""Dropout by the places it sets to zero, drawn from one number that is kept and drawn again in the backward pass.

Each element is dropped on its own with probability p: the distance from one dropped element to the next is geometric,
so a mask costs one random number a dropped element instead of one an element, and a short list instead of a tensor.
A list of few elements is kept until the backward pass, as drawing it again costs more time than it takes memory.

Where each row has a number of its own (row_keys.py), its mask follows from that number alone; otherwise one stream of
random numbers is drawn for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swiftlet.device.kernels import Kernel, RowDropout, Rows
from swiftlet.device.kernels import dropout as plain_dropout
from swiftlet.models.arena import empty_like
from swiftlet.models.row_keys import layer_keys

DRAWN_AT_ONCE = 2**15  # numbers of whole rows; more do not stay in a core's cache, and fewer are mostly calls
MOST_KEPT = 2**14  # dropped elements; to draw so few takes most of the time for calls, whatever their number


def active_p(module: nn.Module) -> float:
    """Return the probability with which a LoRA layer's module of dropout drops elements now."""
    return module.p if isinstance(module, nn.Dropout) and module.training else 0.0


def draw_seed() -> int:
    """Return a seed from torch's generator on the CPU; nothing waits for a device."""
    return int(torch.randint(2**62, ()))


def dropped_positions(num_elements: int, p: float, seed: int) -> Tensor:
    """Return which of `num_elements` are dropped, in ascending order, for 0 < p < 1.

    The 32 bits of a generator as they come are twice as fast as numpy's exponential numbers.
    """
    bits, mean = np.random.SFC64(seed), num_elements * p
    num_draws = int(mean + 6 * math.sqrt(mean) + 8)
    found, last = [], -1
    while last < num_elements - 1:
        positions = _distances(bits.random_raw((num_draws + 1) // 2).view(np.uint32), p)
        np.cumsum(positions, out=positions)
        positions += last
        last = int(positions[-1])
        found.append(positions)
    positions = np.concatenate(found) if len(found) > 1 else found[0]
    return torch.from_numpy(positions[: np.searchsorted(positions, num_elements)])


def dropped_by_rows(keys_T: np.ndarray, width: int, p: float) -> Tensor:
    """Return which elements of [T, width] are dropped, as above, where each row has a stream of its own.

    The stream is a counter from the row's number on, each count with its bits mixed.
    Source: Mulvey 2016, hash prospector, the mixing of 32 bits with the least bias of that form.
    """
    mean = width * p
    num_draws = int(mean + 3 * math.sqrt(mean) + 2)  # enough for all but a thousandth of the rows
    size = max(1, DRAWN_AT_ONCE // num_draws)
    found = [
        positions
        for start in range(0, len(keys_T), size)
        for positions in _rounds(keys_T[start : start + size], start * width, width, p, num_draws)
    ]
    return torch.from_numpy(np.concatenate(found) if len(found) > 1 else found[0])


def _rounds(keys_T: np.ndarray, begin: int, width: int, p: float, num_draws: int) -> Iterator[np.ndarray]:
    """Yield dropped elements of rows that begin at `begin`, until the last draw of each row is outside of it."""
    ends = np.arange(begin + width, begin + (len(keys_T) + 1) * width, width)
    last, first = ends - width - 1, 0
    while len(keys_T):
        counts = np.arange(first + 1, first + num_draws + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)
        positions = _distances(_mixed(keys_T[:, None] + counts), p)
        positions[:, 0] += last
        np.cumsum(positions, axis=1, out=positions)
        yield positions[positions < ends[:, None]]
        last = positions[:, -1]
        more = np.flatnonzero(last < ends - 1)
        keys_T, last, ends, first = keys_T[more], last[more], ends[more], first + num_draws


def _distances(bits: np.ndarray, p: float) -> np.ndarray:
    """Return how far each dropped element is from the one before it, from as many uniform numbers of 32 bits.

    Source: a geometric distance is the whole part of an exponential one over -log(1 - p), plus one, and -log of a
    uniform number is exponential.
    """
    draws = bits.astype(np.float32)
    draws += np.float32(0.5)
    draws *= np.float32(2**-32)
    # not torch's, which is faster but computes nothing on the fake tensors of a trace
    np.log(draws, out=draws)
    draws *= np.float32(1 / math.log1p(-p))
    distances = draws.astype(np.int64)
    distances += 1
    return distances


def _mixed(bits: np.ndarray) -> np.ndarray:
    other = bits >> np.uint32(16)
    for factor in (0x21F0AAAD, 0x735A2D97):
        bits ^= other
        bits *= np.uint32(factor)
        np.right_shift(bits, np.uint32(15), out=other)
    bits ^= other
    return bits


class Dropout:
    """One mask over tensors of one shape.

    A CPU uses the list of dropped elements, unless another operator is given (see device/kernels.py); other devices the
    operator, from the same kind of number.

    Args:
        source: a seed for one stream of numbers, or what decides row by row; the operator must be able to.
        short: what `short_list` of the same mask has returned, where that was kept.
    """

    def __init__(
        self,
        p: float,
        source: int | Rows,
        operator: Kernel = plain_dropout,
        short: Tensor | None = None,
    ) -> None:
        self.p = p
        self.source = source
        self.operator = operator
        self._positions = None if short is None else short.long()

    def short_list(self) -> Tensor | None:
        """Return the dropped elements in 32 bits where it pays to keep them, None where they are drawn again."""
        if self._positions is None or len(self._positions) > MOST_KEPT:
            return None
        return self._positions.int()

    def _has_list(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and self.operator is plain_dropout

    def zero_(self, x: Tensor) -> Tensor:
        """Set the dropped elements of a contiguous tensor to zero, in place; nothing is scaled."""
        if not self._has_list(x):
            return self._operate(x)
        if self._positions is None:
            if isinstance(self.source, Rows):
                self._positions = dropped_by_rows(layer_keys(self.source), x.shape[-1], self.p)
            else:
                self._positions = dropped_positions(x.numel(), self.p, self.source)
        x.view(-1).index_fill_(0, self._positions, 0)
        return x

    def zeroed(self, x: Tensor) -> Tensor:
        """Return a copy with the dropped elements set to zero."""
        x = x.contiguous()
        if self._has_list(x):
            return self.zero_(empty_like(x).copy_(x))
        return self._operate(x, out=torch.empty_like(x))

    def add_zeroed_(self, target: Tensor, x: Tensor) -> Tensor:
        """Add x without its dropped elements to a contiguous tensor; x may be overwritten."""
        if self._has_list(x):
            return target.add_(self.zero_(x))
        return self._operate(x, out=target, is_added=True)

    def _operate(self, x: Tensor, **options: Any) -> Tensor:
        if not isinstance(self.source, Rows):
            return self.operator(x, self.p, self.source, **options)
        assert isinstance(self.operator, RowDropout)
        return self.operator.by_rows(x, self.p, self.source, **options)
