"""Adapters in the type of a shorter base, made for all layers of a pass at once.

An adapter is trained in fp32 and multiplied in the base's type. To change the type of each matrix by itself takes as
many calls as there are matrices, and on an accelerator a small model's time is calls: here all matrices are one tensor
that changes its type once, and once with the layers' scale, by which nothing needs to be multiplied then. Matrices of
layers that are computed together lie side by side.

Shapes: R rank, I inputs, O outputs, S the sum of the ranks of layers that are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swiftlet.models.dropout import active_p

MOST_JOINED = 128


class Copies(NamedTuple):
    """The matrices of layers over one input in the base's type, and the same times the layers' scale."""

    a_SI: Tensor
    scaled_a_SI: Tensor
    all_b_OR: list[Tensor]
    all_scaled_b_OR: list[Tensor]


class _Place(NamedTuple):
    """Where a matrix lies in the tensor of all, and the matrix as it was when that was made."""

    start: int
    end: int
    matrix: Tensor
    version: int


class AdapterCopies:
    """The copies of the pass that runs; whoever runs it says when it begins.

    There are none where nothing is gained (adapters in the base's type), where layers have other scales than the first
    one, and where an engine has not gathered the adapters yet when a pass begins.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Any, str]] = []
        self._matrices: list[list[nn.Module]] = [[], []]
        self._forget()

    def _forget(self) -> None:
        self._places: dict[int, _Place] = {}
        self._plain = self._scaled = torch.empty(0)
        self._scale = 1.0

    def add(self, layer: Any, name: str) -> None:
        """Know an adapter of a LoRA layer, attributes as in peft's; layers that are computed together come in turn."""
        self._layers.append((layer, name))
        for matrices, module in zip(self._matrices, (layer.lora_A[name], layer.lora_B[name]), strict=True):
            matrices.append(module)

    @torch.no_grad()
    def begin(self) -> None:
        """Make the copies of all adapters as they are now."""
        self._forget()
        if not self._layers:
            return
        layer, name = self._layers[0]
        dtype = layer.get_base_layer().weight.dtype
        matrices: list[Any] = [module.weight for modules in self._matrices for module in modules]
        first = matrices[0]
        if first.dtype != torch.float32 or dtype not in (torch.bfloat16, torch.float16):
            return
        if any(
            type(one) is not nn.Parameter or not one.numel() or one.device != first.device for one in matrices
        ):
            return
        self._scale = scale_of(layer, name)
        whole = _joined([one.reshape(-1) for one in matrices])
        self._plain = whole.to(dtype)
        self._scaled = whole.mul_(self._scale).to(dtype)
        start = 0
        for one in matrices:
            self._places[id(one)] = _Place(start, start + one.numel(), one, one._version)
            start += one.numel()

    def of(
        self, all_a: Sequence[Tensor], all_b: Sequence[Tensor], scales: Sequence[float], dtype: torch.dtype
    ) -> Copies | None:
        """Return the copies of adapters that lie side by side; None where there are none of what they are now.

        Args:
            scales: what the layers multiply by, the dropout's factor included.
        """
        is_none = not self._places or self._plain.dtype != dtype
        if is_none or any(scale != self._scale for scale in scales):
            return None
        places = [self._places.get(id(matrix)) for matrix in (*all_a, *all_b)]
        known = [
            place
            for place, matrix in zip(places, (*all_a, *all_b), strict=True)
            if place is not None and place.matrix is matrix and place.version == matrix._version
        ]
        known_a, known_b = known[: len(all_a)], known[len(all_a) :]
        if len(known) < len(places) or any(one.end != other.start for one, other in pairwise(known_a)):
            return None
        joined, width = slice(known_a[0].start, known_a[-1].end), all_a[0].shape[1]
        a_SI, scaled_a_SI = (whole[joined].view(-1, width) for whole in (self._plain, self._scaled))
        return Copies(
            a_SI,
            scaled_a_SI,
            *([_taken(whole, one) for one in known_b] for whole in (self._plain, self._scaled)),
        )


def _joined(parts: list[Tensor]) -> Tensor:
    """Return parts behind each other; not all at once, as operators of some devices take no list of any length."""
    if len(parts) <= MOST_JOINED:
        return torch.cat(parts)
    return torch.cat([torch.cat(parts[at : at + MOST_JOINED]) for at in range(0, len(parts), MOST_JOINED)])


def _taken(whole: Tensor, place: _Place) -> Tensor:
    return whole[place.start : place.end].view(place.matrix.shape)


def scale_of(layer: Any, name: str) -> float:
    """Return what a LoRA layer multiplies its adapter by, dropout's factor included."""
    return float(layer.scaling[name]) / (1 - active_p(layer.lora_dropout[name]))
