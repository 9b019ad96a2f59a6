"""Numbers that decide over the dropout masks of a pass: one a row, from what stands before it in its sample.

A mask then follows from the step, the layer and the tokens up to a row, and not from which samples go together, nor
from whether equal beginnings are computed once: however a step is cut, its gradient is the same.

The arithmetic is that of unsigned numbers of 64 bits, on whatever device the tokens are; torch's are signed, whose
products and sums have the same bits.

Shapes: T tokens of a micro-batch, U rows that are computed, N rows that the last layer is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from swiftlet.device.kernels import Rows

Numbers = TypeVar("Numbers", Tensor, np.ndarray)  # signed, of 64 bits


def signed(number: int) -> int:
    """Return a number below 2^64 as one of torch's signed 64 bits has its bits."""
    return (number + 2**63) % 2**64 - 2**63


GOLDEN = 0x9E3779B97F4A7C15
FACTORS = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def _shifted(numbers: Numbers, bits: int) -> Numbers:
    return (numbers >> bits) & (2 ** (64 - bits) - 1)


def mixed(numbers: Numbers) -> Numbers:
    """Return numbers whose bits depend on all bits of `numbers`; Steele et al. 2014, SplitMix, variant 13."""
    result = (numbers ^ _shifted(numbers, 30)) * FACTORS[0]
    result = (result ^ _shifted(result, 27)) * FACTORS[1]
    return result ^ _shifted(result, 31)


def keys_of(input_ids_T: Tensor, position_ids_T: Tensor, seed: int | Tensor) -> Tensor:
    """Return a number for each token from those of its sample up to it: equal beginnings have equal ones."""
    sums_T = torch.cumsum(mixed(mixed(input_ids_T + 1) + position_ids_T * signed(GOLDEN)), 0)
    starts_T = torch.arange(len(sums_T), device=sums_T.device) - position_ids_T
    before_T = torch.cat([sums_T.new_zeros(1), sums_T]).index_select(0, starts_T)
    return mixed((sums_T - before_T) ^ (signed(seed) if isinstance(seed, int) else seed))


def layer_keys(rows: Rows) -> np.ndarray:
    """Return a 32-bit number for each row of a layer's input, from those of the rows of a pass on a processor."""
    # by numpy, which takes a third of torch's time
    keys_T = mixed(rows.keys_T.numpy() + signed((rows.layer + 1) * GOLDEN % 2**64))
    return _shifted(keys_T, 32).astype(np.uint32)


class RowKeys:
    """The numbers of the pass that runs, for the layers that have dropout; set by whoever runs it.

    Args:
        of_device: whether the device's own operator can draw by rows; on a processor ours can.
    """

    def __init__(self, *, of_device: bool = False) -> None:
        self.of_device = of_device
        self._known: dict[int, Tensor] = {}
        self._make: Callable[[], dict[int, Tensor]] | None = None

    def begin(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        seed: int | Tensor | None,
        first_U: Tensor | None,
        positions_N: Tensor,
    ) -> None:
        """Know the rows of a pass by how many there are; without a seed, or where none can draw by rows, none.

        Args:
            seed: of the step; a signed number on the device where a pass is recorded.
            first_U: the first token of each row, None where each token is a row.
            positions_N: the rows that the last layer is asked for. They are all rows if they are as many, as no two
                are the same.
        """
        self._known, self._make = {}, None
        if seed is None or not (self.of_device or input_ids_T.device.type == "cpu"):
            return

        def make() -> dict[int, Tensor]:
            keys_T = keys_of(input_ids_T, position_ids_T, seed)
            keys_U = keys_T if first_U is None else keys_T.index_select(0, first_U)
            return {len(positions_N): keys_U.index_select(0, positions_N), len(keys_U): keys_U}

        self._make = make

    def of(self, num_rows: int, layer: int) -> Rows | None:
        """Return what decides over each row of a layer's input; None where it is not known which rows they are."""
        if self._make is not None:  # a pass without dropout asks for none
            self._known, self._make = self._make(), None
        keys = self._known.get(num_rows)
        return None if keys is None else Rows(keys, layer)
