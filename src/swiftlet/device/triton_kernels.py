"""Elementwise operators of NVIDIA GPUs in one pass each: SwiGLU, the rotation, dropout.

Triton comes with torch for CUDA. The arithmetic is fp32, whatever the type of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftlet.device.kernels import RowDropout, Rows, SwigluParts

BLOCK = 1024
ROUNDS = 7  # of Philox-4x32, with which it passes BigCrush. Source: Salmon et al. 2011, table 2
QUADS = 512  # counters of one block: each gives four random numbers
ROTATED = 16  # heads of one block


@triton.jit
def _silu_mul(gate_at, up_at, out_at, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(gate_at + at, mask=inside).to(tl.float32)
    up = tl.load(up_at + at, mask=inside).to(tl.float32)
    tl.store(out_at + at, (gate * tl.sigmoid(gate) * up).to(out_at.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul_backward(grad_at, gate_at, up_at, grad_gate_at, grad_up_at, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    grad = tl.load(grad_at + at, mask=inside).to(tl.float32)
    gate = tl.load(gate_at + at, mask=inside).to(tl.float32)
    up = tl.load(up_at + at, mask=inside).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(grad_gate_at + at, (grad * up * slope).to(grad_gate_at.dtype.element_ty), mask=inside)
    tl.store(grad_up_at + at, (grad * gate * sigmoid).to(grad_up_at.dtype.element_ty), mask=inside)


@triton.jit
def _write_kept(x_at, out_at, at, inside, is_kept, IS_ADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(x_at + at, mask=inside)
    kept = tl.where(is_kept, value, tl.zeros_like(value))
    if IS_ADDED:
        target = tl.load(out_at + at, mask=inside)
        kept = (target.to(tl.float32) + kept.to(tl.float32)).to(out_at.dtype.element_ty)
    tl.store(out_at + at, kept, mask=inside)


@triton.jit(do_not_specialize=["seed"])
def _drop(x_at, out_at, count, p, seed, IS_ADDED: tl.constexpr, QUADS: tl.constexpr, ROUNDS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.program_id(0).to(tl.int64)
    counter = block * QUADS + tl.arange(0, QUADS)
    draws = tl.rand4x(seed, counter.to(tl.int32), n_rounds=ROUNDS)
    for part in tl.static_range(4):
        at = (block * 4 + part) * QUADS + tl.arange(0, QUADS)
        inside = at < count
        _write_kept(x_at, out_at, at, inside, draws[part] >= p, IS_ADDED)


@triton.jit(do_not_specialize=["layer"])
def _drop_rows(  # type: ignore[no-untyped-def]
    x_at, out_at, keys_at, width, p, layer, IS_ADDED: tl.constexpr, QUADS: tl.constexpr, ROUNDS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    counter = (block * QUADS + tl.arange(0, QUADS)).to(tl.int64)
    # the layer is the upper half of the counter, so no two layers have one stream
    draws = tl.rand4x(tl.load(keys_at + row), counter + (layer.to(tl.int64) << 32), n_rounds=ROUNDS)
    for part in tl.static_range(4):
        column = (block * 4 + part) * QUADS + tl.arange(0, QUADS)
        at, inside = row * width + column, column < width
        _write_kept(x_at, out_at, at, inside, draws[part] >= p, IS_ADDED)


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    x_at,
    cos_at,
    sin_at,
    out_at,
    num_heads,
    length,
    x_strides_b,
    x_strides_n,
    x_strides_s,
    out_strides_b,
    out_strides_n,
    out_strides_s,
    SIGN: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    batch, position = token // length, token % length
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, WIDTH)
    inside = (head[:, None] < num_heads) & (column[None, :] < HALF)
    row = token * 2 * HALF + column
    cos1 = tl.load(cos_at + row, mask=column < HALF).to(tl.float32)
    sin1 = tl.load(sin_at + row, mask=column < HALF).to(tl.float32)
    cos2 = tl.load(cos_at + row + HALF, mask=column < HALF).to(tl.float32)
    sin2 = tl.load(sin_at + row + HALF, mask=column < HALF).to(tl.float32)
    at = batch * x_strides_b + head[:, None] * x_strides_n + position * x_strides_s + column[None, :]
    first = tl.load(x_at + at, mask=inside).to(tl.float32)
    second = tl.load(x_at + at + HALF, mask=inside).to(tl.float32)
    if SIGN > 0:
        turned1 = first * cos1 - second * sin1
        turned2 = second * cos2 + first * sin2
    else:  # the transposed rotation, for the gradient
        turned1 = first * cos1 + second * sin2
        turned2 = second * cos2 - first * sin1
    to = batch * out_strides_b + head[:, None] * out_strides_n + position * out_strides_s + column[None, :]
    tl.store(out_at + to, turned1.to(out_at.dtype.element_ty), mask=inside)
    tl.store(out_at + to + HALF, turned2.to(out_at.dtype.element_ty), mask=inside)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up for contiguous tensors of one shape; no gradient."""
    out = torch.empty_like(gate)
    count = gate.numel()
    _silu_mul[(triton.cdiv(count, BLOCK),)](gate, up, out, count, BLOCK=BLOCK)
    return out


def silu_mul_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up; that of gate takes the memory of `grad`."""
    grad_up = torch.empty_like(up)
    count = gate.numel()
    _silu_mul_backward[(triton.cdiv(count, BLOCK),)](grad, gate, up, grad, grad_up, count, BLOCK=BLOCK)
    return grad, grad_up


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return silu_mul(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        own = grad.clone(memory_format=torch.contiguous_format)  # autograd may still need what it gave
        return silu_mul_backward(own, *ctx.saved_tensors)


swiglu = SwigluParts(_Swiglu.apply, silu_mul, silu_mul_backward)


def _dropout(x: Tensor, p: float, seed: int, *, out: Tensor | None = None, is_added: bool = False) -> Tensor:
    """Write x with the dropped elements set to zero into `out` (or x itself), or add that to it; see device/kernels.py.

    Each element is dropped on its own; which ones follows from the seed and the shape alone.
    """
    out = x if out is None else out
    assert x.is_contiguous() and out.is_contiguous() and x.shape == out.shape
    blocks = triton.cdiv(x.numel(), 4 * QUADS)
    _drop[(blocks,)](x, out, x.numel(), p, seed, IS_ADDED=is_added, QUADS=QUADS, ROUNDS=ROUNDS)
    return out


def _row_dropout(
    x_TI: Tensor, p: float, rows: Rows, *, out: Tensor | None = None, is_added: bool = False
) -> Tensor:
    """Do the same with a mask of each row that follows from its number and the layer's alone."""
    out = x_TI if out is None else out
    assert x_TI.is_contiguous() and out.is_contiguous() and x_TI.shape == out.shape
    num_rows, width = x_TI.shape
    quads = min(QUADS, triton.next_power_of_2(triton.cdiv(width, 4)))
    grid = (num_rows, triton.cdiv(width, 4 * quads))
    _drop_rows[grid](
        x_TI, out, rows.keys_T, width, p, rows.layer, IS_ADDED=is_added, QUADS=quads, ROUNDS=ROUNDS
    )
    return out


dropout = RowDropout(_dropout, _row_dropout)


def _rotated(x_BNSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor, sign: int) -> Tensor:
    batch, heads, length, width = x_BNSD.shape
    if x_BNSD.stride(3) != 1:
        x_BNSD = x_BNSD.contiguous()
    # Head beside head, as the projections and the attention lay them.
    out_BNSD = x_BNSD.new_empty(batch, length, heads, width).transpose(1, 2)
    grid = (batch * length, triton.cdiv(heads, ROTATED))
    half = width // 2
    _rotate[grid](
        x_BNSD,
        cos_BSD,
        sin_BSD,
        out_BNSD,
        heads,
        length,
        *x_BNSD.stride()[:3],
        *out_BNSD.stride()[:3],
        SIGN=sign,
        HALF=half,
        WIDTH=triton.next_power_of_2(half),
        HEADS=min(ROTATED, triton.next_power_of_2(heads)),
    )
    return out_BNSD


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BNSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> Tensor:
        cos_BSD, sin_BSD = cos_BSD.contiguous(), sin_BSD.contiguous()
        ctx.save_for_backward(cos_BSD, sin_BSD)
        return _rotated(x_BNSD, cos_BSD, sin_BSD, 1)

    @staticmethod
    def backward(ctx: Any, grad_BNSD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos_BSD, sin_BSD = ctx.saved_tensors
        return _rotated(grad_BNSD, cos_BSD, sin_BSD, -1), None, None


def rotary(x_BNSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> Tensor:
    """Return x with the pairs (i, i + D/2) rotated; the cosines have no gradient. See device/kernels.py."""
    apply: Callable[..., Tensor] = _Rotary.apply
    return apply(x_BNSD, cos_BSD, sin_BSD)
