"""Numbers that decide over the dropout masks of a pass: one a row, from what stands before it in its sample.

A mask then follows from the step, the layer and the tokens up to a row, and not from which samples go together, nor on
which device, nor from whether equal beginnings are computed once: however a step is cut, its gradient is the same.

Shapes: T tokens of a micro-batch, U rows that are computed, N rows that the last layer is asked for.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Return uint64 whose bits depend on all bits of `numbers`; Steele et al. 2014, SplitMix, variant 13."""
    result = numbers ^ (numbers >> np.uint64(30))
    result *= np.uint64(0xBF58476D1CE4E5B9)
    result ^= result >> np.uint64(27)
    result *= np.uint64(0x94D049BB133111EB)
    return result ^ (result >> np.uint64(31))


def keys_of(input_ids_T: Tensor, position_ids_T: Tensor, seed: int) -> np.ndarray:
    """Return a number for each token from those of its sample up to it: equal beginnings have equal ones."""
    ids, positions = (tensor.numpy().astype(np.uint64) for tensor in (input_ids_T, position_ids_T))
    sums = np.cumsum(mixed(mixed(ids + np.uint64(1)) + positions * np.uint64(GOLDEN)))
    starts = np.maximum.accumulate(np.where(positions == 0, np.arange(len(ids)), 0))
    before = np.concatenate([np.zeros(1, np.uint64), sums])[starts]
    return mixed((sums - before) ^ np.uint64(seed))


class RowKeys:
    """The numbers of the pass that runs, for the layers that have dropout; set by whoever runs it."""

    def __init__(self) -> None:
        self._known: dict[int, np.ndarray] = {}

    def begin(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        seed: int | None,
        first_U: np.ndarray | None,
        positions_N: Tensor,
    ) -> None:
        """Know the rows of a pass by how many there are; without a seed, or on another device, none.

        Args:
            first_U: the first token of each row, None where each token is a row.
            positions_N: the rows that the last layer is asked for. They are all rows if they are as many, as no two
                are the same.
        """
        self._known = {}
        if seed is not None and input_ids_T.device.type == "cpu":
            keys_T = keys_of(input_ids_T, position_ids_T, seed)
            keys_U = keys_T if first_U is None else keys_T[first_U]
            self._known = {len(positions_N): keys_U[positions_N.numpy()], len(keys_U): keys_U}

    def of(self, num_rows: int, layer: int) -> np.ndarray | None:
        """Return a 32-bit number for each row of a layer's input; None where it is not known which rows they are."""
        keys = self._known.get(num_rows)
        if keys is None:
            return None
        return (mixed(keys + np.uint64((layer + 1) * GOLDEN % 2**64)) >> np.uint64(32)).astype(np.uint32)
