"""RMS norm that keeps one tensor and one number a row for the backward pass.

What it keeps is its input, or, where the weight is frozen, its output: the layers behind it keep that anyway, so the
input is free once the next layer has added to it. With n = x / rms(x), y = w n and g the gradient of y:

    dx = (w g - n mean(w g n)) / rms(x) = (w^2 g - y mean(g y)) / (w rms(x))

Shapes: R rows, H hidden size. Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swiftlet.models.arena import empty_like

SMALLEST_WEIGHT = 1e-9  # its square is still a normal number of fp32


def keeps_output(x_RH: Tensor, weight_H: Tensor) -> bool:
    """Return whether the backward pass can do with the output: a shorter type has rounded it, a zero has erased it.

    Not on other devices than a CPU, which would be waited for; a trace has no weights to look at.
    """
    is_plain = x_RH.device.type == "cpu" and not weight_H.requires_grad
    is_plain = is_plain and x_RH.dtype == weight_H.dtype == torch.float32
    if not is_plain or type(weight_H) not in (Tensor, torch.nn.Parameter):
        return is_plain
    return bool(weight_H.abs().min() > SMALLEST_WEIGHT)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        wide_RH = x_RH.float()
        inverse_R1 = torch.linalg.vector_norm(wide_RH, dim=-1, keepdim=True).square_()
        inverse_R1.mul_(1 / x_RH.shape[-1]).add_(eps).rsqrt_()
        if x_RH.dtype == torch.float32:
            y_RH = torch.mul(x_RH, inverse_R1, out=empty_like(x_RH)).mul_(weight_H)
        else:
            y_RH = wide_RH.mul_(inverse_R1).mul_(weight_H).to(x_RH.dtype)
        ctx.keeps_output = keeps_output(x_RH, weight_H)
        ctx.save_for_backward(y_RH if ctx.keeps_output else x_RH, weight_H, inverse_R1)
        return y_RH

    @staticmethod
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kept_RH, weight_H, inverse_R1 = ctx.saved_tensors
        if ctx.keeps_output:
            return _grad_of_output(grad_RH, kept_RH, weight_H, inverse_R1), None, None
        wide_RH = grad_RH.float()
        normed_RH = torch.mul(kept_RH.float(), inverse_R1, out=empty_like(wide_RH))
        grad_weight = (
            (wide_RH * normed_RH).flatten(0, -2).sum(0).to(weight_H.dtype)
            if ctx.needs_input_grad[1]
            else None
        )
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        scaled_RH = torch.mul(wide_RH, weight_H, out=empty_like(wide_RH))
        share_R1 = torch.linalg.vecdot(scaled_RH, normed_RH).mul_(-1 / kept_RH.shape[-1]).unsqueeze(-1)
        grad_x = scaled_RH.addcmul_(normed_RH, share_R1).mul_(inverse_R1).to(kept_RH.dtype)
        return grad_x, grad_weight, None


def _grad_of_output(grad_RH: Tensor, y_RH: Tensor, weight_H: Tensor, inverse_R1: Tensor) -> Tensor:
    """Return the gradient of x from that of y and y itself, all fp32."""
    share_R1 = torch.linalg.vecdot(grad_RH, y_RH).mul_(-1 / y_RH.shape[-1]).unsqueeze(-1)
    grad_x = torch.mul(grad_RH, weight_H.square(), out=empty_like(grad_RH))
    return grad_x.addcmul_(y_RH, share_R1).mul_(inverse_R1).div_(weight_H)


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) in the type of x; the arithmetic is fp32."""
    return _RmsNorm.apply(x, weight_H, eps)
