"""Tensors that the backward pass makes again instead of keeping: dear to hold, cheap to compute.

Of a layer these are its normalised inputs (elementwise), the gated MLP's `up` (one product) and, where down's weight is
trained, silu(gate) * up (elementwise). Whoever computes such a tensor offers it together with how it is made again. The
hooks of autograd then see what operators save, whichever they are, and keep the way instead of the tensor. It is made
once for all who saved it, by the same kernel from the same inputs, so gradients are the same bits; it is freed with the
last of them. Nothing random is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Make = Callable[[], Tensor]


class Remade:
    """A tensor that can be made again; calling it returns the tensor, made on the first call."""

    __slots__ = ("_make", "_made")

    def __init__(self, make: Make) -> None:
        self._make: Make | None = make
        self._made: Tensor | None = None

    def __call__(self) -> Tensor:
        """Return the tensor; it lives as long as this object, which operators hold until their backward has run."""
        if self._made is None:
            assert self._make is not None
            with torch.no_grad():
                self._made = self._make()
            self._make = None  # and with it what only it was made from
        return self._made


class Recompute(saved_tensors_hooks):
    """A context for forward passes: what is offered inside is not kept for the backward pass.

    Does nothing until it is switched on, and nothing where no gradient is asked for.

    Attributes:
        is_on: make offered tensors again.
        is_active: a forward pass with a gradient runs, and what it offers is made again.
        num_norms, num_ups: modules of a model that offer their output, and gated MLPs that offer their `up`.
    """

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)
        self.is_on = self.is_active = False
        self.num_norms = self.num_ups = 0
        # A storage is found here by each of its views, until it is freed: no address is taken for another's.
        self._known: WeakKeyDictionary[Any, Remade] = WeakKeyDictionary()

    def __enter__(self) -> None:
        """Begin to look at what is saved."""
        self.is_active = self.is_on and torch.is_grad_enabled()
        if self.is_active:
            super().__enter__()

    def __exit__(self, *args: object) -> None:
        """Forget what was offered; those who saved it still know how to make it."""
        if self.is_active:
            super().__exit__(*args)
        self.is_active = False
        self._known.clear()

    def offer(self, tensor: Tensor, make: Make) -> Tensor:
        """Return `tensor`, which fills its storage and can be made again by `make`; call it while active only."""
        self._known[tensor.untyped_storage()] = Remade(make)
        return tensor

    def kept(self, tensor: Tensor) -> Make:
        """Return how to get a tensor in the backward pass: one that was offered is not held."""
        packed = self._pack(tensor.detach())
        return lambda: self._unpack(packed)

    def _pack(self, tensor: Tensor) -> Tensor | tuple[Remade, torch.Size]:
        storage = tensor.untyped_storage()
        found = self._known.get(storage)
        is_whole = tensor.is_contiguous() and tensor.numel() * tensor.element_size() == storage.nbytes()
        return tensor if found is None or not is_whole else (found, tensor.shape)

    @staticmethod
    def _unpack(packed: Tensor | tuple[Remade, torch.Size]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[0]().view(packed[1])
