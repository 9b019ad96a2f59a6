"""Activations and gated units with their backward operators."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel


@kernel("npu_swiglu")
def swiglu(input: Tensor, dim: int) -> Tensor:
    """silu(first half) * second half."""
    check(input.shape[dim] % 2 == 0, f"npu_swiglu: dim {dim} of {tuple(input.shape)} must be even")
    gate, up = input.float().chunk(2, dim)
    return (F.silu(gate) * up).to(input.dtype)


@kernel("npu_swiglu_backward")
def swiglu_backward(grad_output: Tensor, input: Tensor, dim: int) -> Tensor:
    return gradients(lambda x: swiglu(x, dim), [input], [grad_output])[0]


@kernel("npu_gelu")
def gelu(input: Tensor, approximate: str) -> Tensor:
    return F.gelu(input, approximate=approximate)


@kernel("npu_gelu_backward")
def gelu_backward(grad_output: Tensor, input: Tensor, approximate: str) -> Tensor:
    return gradients(lambda x: F.gelu(x, approximate=approximate), [input], [grad_output])[0]


@kernel("npu_fast_gelu", "fast_gelu")
def fast_gelu(input: Tensor) -> Tensor:
    """x / (1 + exp(-1.702 |x|)) * exp(0.851 (x - |x|)), which is x * sigmoid(1.702 x)."""
    return input * torch.sigmoid(1.702 * input)


@kernel("npu_fast_gelu_backward")
def fast_gelu_backward(grad: Tensor, input: Tensor) -> Tensor:
    return gradients(fast_gelu, [input], [grad])[0]


@kernel("npu_silu")
def silu(input: Tensor) -> Tensor:
    return F.silu(input)


@kernel("npu_silu_")
def silu_(input: Tensor) -> Tensor:
    input.copy_(F.silu(input))
    return input


@kernel("npu_silu_backward")
def silu_backward(grad_output: Tensor, x0: Tensor) -> Tensor:
    return gradients(F.silu, [x0], [grad_output])[0]


@kernel("npu_mish")
def mish(input: Tensor) -> Tensor:
    return F.mish(input)


@kernel("npu_mish_backward")
def mish_backward(grad: Tensor, input: Tensor) -> Tensor:
    return gradients(F.mish, [input], [grad])[0]


@kernel("npu_geglu")
def geglu(input: Tensor, dim: int, approximate: int, activate_left: bool) -> tuple[Tensor, Tensor]:
    """Returns kept half * gelu(activated half), and the gelu."""
    left, right = input.chunk(2, dim)
    if activate_left:
        left, right = right, left
    active = F.gelu(right, approximate="tanh" if approximate else "none")
    return left * active, active


@kernel("npu_geglu_grad")
def geglu_grad(
    grad_output: Tensor, input: Tensor, gelu: Tensor, dim: int, approximate: int, activate_left: bool
) -> Tensor:
    return gradients(lambda x: geglu(x, dim, approximate, activate_left)[0], [input], [grad_output])[0]


@kernel("npu_gelu_mul")
def gelu_mul(input: Tensor, approximate: str) -> Tensor:
    """gelu(first half) * second half."""
    first, second = input.float().chunk(2, -1)
    return (F.gelu(first, approximate=approximate) * second).to(input.dtype)


@kernel("npu_clipped_swiglu")
def clipped_swiglu(
    x: Tensor,
    group_index: Tensor | None,
    dim: int,
    alpha: float,
    limit: float,
    bias: float,
    interleaved: bool,
) -> Tensor:
    """gate * sigmoid(alpha * gate) * (up + bias), both cut to the limit; rows beyond the groups are zero."""
    dim %= x.dim()
    rows = x.reshape(math.prod(x.shape[:dim]), -1).float()
    gate, up = (rows[:, ::2], rows[:, 1::2]) if interleaved else rows.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    y = gate * torch.sigmoid(alpha * gate) * (up + bias)
    if group_index is not None:
        y[int(group_index.sum()) :] = 0
    shape = list(x.shape)
    shape[dim] //= 2
    return y.view(shape).to(x.dtype)
