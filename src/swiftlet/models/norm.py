"""RMS norm that keeps its input and one number a row, and normalises again in the backward pass.

Shapes: R rows, H hidden size. Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swiftlet.models.arena import empty_like


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        wide_RH = x_RH.float()
        inverse_R1 = torch.linalg.vector_norm(wide_RH, dim=-1, keepdim=True).square_()
        inverse_R1.mul_(1 / x_RH.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_RH, weight_H, inverse_R1)
        if x_RH.dtype == torch.float32:
            return torch.mul(x_RH, inverse_R1, out=empty_like(x_RH)).mul_(weight_H)
        return wide_RH.mul_(inverse_R1).mul_(weight_H).to(x_RH.dtype)

    @staticmethod
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_RH, weight_H, inverse_R1 = ctx.saved_tensors
        wide_RH = grad_RH.float()
        normed_RH = torch.mul(x_RH.float(), inverse_R1, out=empty_like(wide_RH))
        grad_weight = (
            (wide_RH * normed_RH).flatten(0, -2).sum(0).to(weight_H.dtype)
            if ctx.needs_input_grad[1]
            else None
        )
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        scaled_RH = torch.mul(wide_RH, weight_H, out=empty_like(wide_RH))
        share_R1 = torch.linalg.vecdot(scaled_RH, normed_RH).mul_(-1 / x_RH.shape[-1]).unsqueeze(-1)
        grad_x = scaled_RH.addcmul_(normed_RH, share_R1).mul_(inverse_R1).to(x_RH.dtype)
        return grad_x, grad_weight, None


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) in the type of x; the arithmetic is fp32."""
    return _RmsNorm.apply(x, weight_H, eps)
