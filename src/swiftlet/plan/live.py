"""Bytes of tensors that are alive, counted at every operator: the instrument of the trace and of measurements.

A storage counts from the operator that makes it until it is freed, whichever tensors are views of it. Real and fake
tensors are counted alike. Memory that an operator takes and gives back inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MATRIX_OPERATORS = frozenset({"mm", "addmm", "bmm", "baddbmm", "addmm_", "linear"})
# What launches nothing: questions, empty memory, and views that torch does not call views.
NO_KERNEL = frozenset(
    "device empty empty_like empty_strided new_empty _unsafe_view _local_scalar_dense allclose".split()
)


class LiveBytes(TorchDispatchMode):
    """Counts live bytes and their peak, the kernels that a device would launch, and the bytes that they move.

    Products of matrices move bytes too, which are not in `moved`: their time is that of their arithmetic.

    Args:
        num_labels: how many positions of a fake micro-batch have a label; None for real tensors, whose values answer.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = (), *, num_labels: int | None = None) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.num_kernels = 0
        self.moved = 0
        self.num_labels = num_labels
        self._known: set[int] = set()
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or tensor.device.type == "meta":
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def reset_peak(self) -> None:
        """Count the peak afresh, from what is alive now."""
        self.peak = self.live

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it made."""
        answer = self._answer(func, args)
        if answer is not None:
            return answer
        result = func(*args, **(kwargs or {}))
        self._count(func, args, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result

    def _count(self, func: Any, args: Any, result: Any) -> None:
        name = func.overloadpacket.__name__
        if func.is_view or name in NO_KERNEL:
            return
        self.num_kernels += 1
        if name not in MATRIX_OPERATORS:
            leaves = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            self.moved += sum(leaf.numel() * leaf.element_size() for leaf in leaves)

    def _answer(self, func: Any, args: Any) -> Any:
        """Return what a fake tensor cannot say by itself: how many labels there are, and that checks pass."""
        if self.num_labels is None:
            return None
        name = func.overloadpacket.__name__
        if name == "nonzero":
            found = args[0].new_empty((self.num_labels, 1), dtype=torch.long)
            self.add(found)
            return found
        if name == "_grouped_mm":  # torch's rule for fake tensors knows one type only
            left, right = args[0], args[1]
            is_forward = right.dim() == 3
            experts = () if is_forward else (args[2].shape[0],)
            found = left.new_empty((*experts, left.shape[0], right.shape[-1]))
            self.add(found)
            return found
        if name == "_local_scalar_dense":
            return 1.0 if args[0].is_floating_point() else 1
        return True if name == "allclose" else None
