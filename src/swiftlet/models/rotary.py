"""The rotation of queries and keys by an operator of the device, layer by layer.

A modeling file of transformers has a function `apply_rotary_pos_emb`, which its attention calls by that name. A layer
gets a copy of its forward that calls the operator instead; the file itself, and models loaded later, are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature, unwrap
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.models.decoder import Attention, rotate

NAME = "apply_rotary_pos_emb"
TOLERANCE = 2e-2  # a rotation of other pairs is off by much more, bf16 by less
Rotate = Callable[..., tuple[Tensor, Tensor]]


def apply_rotary(model: nn.Module, rotary: Callable[[Tensor, Tensor, Tensor], Tensor]) -> int:
    """Let every attention whose rotation is that of halves use `rotary`; return how many there are.

    Args:
        rotary: see device/kernels.py.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, Attention):
            fused, weight = _pair(rotary, _own_pair), next(module.parameters())
            if _agrees(_own_pair, fused, module.head_dim, weight):
                module.rotate, count = rotary, count + 1
            continue
        forward = type(module).forward
        code = getattr(unwrap(forward), "__code__", None)
        head_dim = getattr(module, "head_dim", None)
        if code is None or NAME not in code.co_names or not isinstance(head_dim, int):
            continue
        own = unwrap(forward).__globals__[NAME]
        fused = _pair(rotary, own)
        if list(signature(own).parameters)[:4] != ["q", "k", "cos", "sin"]:
            continue
        if not _agrees(own, fused, head_dim, next(module.parameters())):
            continue
        module.forward = MethodType(_calling(fused, forward), module)  # type: ignore[method-assign]
        count += 1
    return count


def _own_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(q, cos, sin), rotate(k, cos, sin)


def _calling(fused: Rotate, function: Any) -> FunctionType:
    """Return a copy of a function, and of the decorators around it, that finds `fused` under the name."""
    inner = getattr(function, "__wrapped__", None)
    names, cells = function.__globals__, function.__closure__
    if inner is None:
        names = {**names, NAME: fused}
    else:
        changed = CellType(_calling(fused, inner))
        cells = tuple(changed if cell.cell_contents is inner else cell for cell in cells)
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _pair(rotary: Callable[[Tensor, Tensor, Tensor], Tensor], own: Rotate) -> Rotate:
    def fused(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        # other axes, or only a part of each head
        if args or kwargs or q.dim() != 4 or cos.shape != (q.shape[0], q.shape[2], q.shape[3]):
            return own(q, k, cos, sin, *args, **kwargs)
        return rotary(q, cos, sin), rotary(k, cos, sin)

    return fused


@torch.no_grad()
def _agrees(own: Rotate, fused: Rotate, head_dim: int, weight: Tensor) -> bool:
    """Return whether both rotate the same pairs, on a few random vectors.

    Its own runs on the CPU, where what fails can only be the shapes: gpt_oss has angles for half a head.
    """
    if weight.device.type == "meta":
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 3, head_dim), (1, 2, 3, head_dim), (1, 3, head_dim), (1, 3, head_dim))
    tensors = [torch.randn(shape, generator=generator).to(weight.dtype) for shape in shapes]
    try:
        expected = own(*tensors)
    except RuntimeError:
        return False
    pairs = zip(expected, fused(*(tensor.to(weight.device) for tensor in tensors)), strict=True)
    return all(
        torch.allclose(a.float(), b.float().cpu(), rtol=TOLERANCE, atol=4 * TOLERANCE) for a, b in pairs
    )
