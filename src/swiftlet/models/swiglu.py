"""silu(gate) * up that keeps its two inputs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swiftlet.models.arena import empty_like


def _silu(x: Tensor) -> Tensor:
    return torch.ops.aten.silu.out(x, out=empty_like(x))


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up without a graph."""
    return _silu(gate).mul_(up)


def silu_mul_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up; that of gate is written into `grad`."""
    grad_up = _silu(gate).mul_(grad)
    return _grad_gate(grad.mul_(up), gate), grad_up


def _grad_gate(product: Tensor, gate: Tensor) -> Tensor:
    """Return the gradient of gate, written into the product of the gradient and up."""
    return torch.ops.aten.silu_backward.grad_input(product, gate, grad_input=product)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu_mul(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        # whoever else has the gradient must not see it written
        return _grad_gate(torch.mul(grad, up, out=empty_like(grad)), gate), _silu(gate).mul_(grad)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up. Source: Shazeer 2020, "GLU Variants Improve Transformer"."""
    return _Swiglu.apply(gate, up)
