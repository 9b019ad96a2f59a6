"""The arithmetic of LoRA's linear layer, with a backward pass that saves and recomputes the least.

y = x W^T + b + s B(A(drop(x))) keeps x (shared with every layer that reads it), A(drop(x)) and one number for the
mask, with its list where that is short; nothing is kept for the frozen weight. Adapters in fp32 over a base in a
shorter type are multiplied in the base's type, as autocast does, and get their gradient in fp32.

Shapes: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swiftlet.device.kernels import Kernel
from swiftlet.device.kernels import dropout as plain_dropout
from swiftlet.models.arena import empty, empty_like
from swiftlet.models.dropout import Dropout, draw_seed
from swiftlet.models.recompute import Make, Recompute
from swiftlet.models.swiglu import silu_mul, silu_mul_backward


class Adapter(NamedTuple):
    """What LoRA adds to a linear layer: scale B(A(drop(x)))."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    dropout_p: float


class Parts(NamedTuple):
    """The elementwise steps of the layer; a device may have its own, see device/kernels.py."""

    silu_mul: Callable[[Tensor, Tensor], Tensor] = silu_mul
    silu_mul_backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = silu_mul_backward
    dropout: Kernel = plain_dropout


PLAIN_PARTS = Parts()
SMALLEST_PART = 128


def _thin(x_TI: Tensor, matrix_RI: Tensor) -> Tensor:
    """Return x [T, I] times matrix^T [I, R] as [T, R]."""
    is_cpu = x_TI.device.type == "cpu"  # whose BLAS is a quarter faster where both are read along I
    return torch.mm(x_TI, (matrix_RI.contiguous() if is_cpu else matrix_RI).t())


def _sum_of_products(thin_TR: Tensor, x_TI: Tensor) -> Tensor:
    """Return thin^T [R, T] times x [T, I]: on a CPU in parts of I, as BLAS shares so few rows badly among threads."""
    num_parts = 2 * torch.get_num_threads()
    if x_TI.device.type != "cpu" or x_TI.shape[1] % num_parts or x_TI.shape[1] < num_parts * SMALLEST_PART:
        return torch.mm(thin_TR.t(), x_TI)
    parts_PTi = x_TI.view(x_TI.shape[0], num_parts, -1).transpose(0, 1)
    sums_PRi = torch.bmm(thin_TR.t().expand(num_parts, -1, -1), parts_PTi)
    return sums_PRi.transpose(0, 1).flatten(1)


def _flat(x: Tensor) -> Tensor:
    """Return x [..., F] as [T, F]."""
    return x.reshape(-1, x.shape[-1])


def _linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, y_TO: Tensor) -> Tensor:
    """Write x W^T + b into y and return it."""
    if bias_O is None:
        return torch.mm(x_TI, weight_OI.t(), out=y_TO)
    return torch.addmm(bias_O, x_TI, weight_OI.t(), out=y_TO)


class _LoraLinear(torch.autograd.Function):
    """The layer over x, or over silu(gate) * up, which is made again in the backward pass instead of kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor | None,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        p: float,
        parts: Parts,
        again: Recompute | None,
    ) -> Tensor:
        x_TI, up_TI = _flat(x), None if up is None else _flat(up)
        input_TI = x_TI if up_TI is None else parts.silu_mul(x_TI, up_TI)
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        seed, short = draw_seed() if p > 0 else 0, None
        # whole and no view of another, so that what is added to it in place needs no copy in the backward pass
        y = empty((*x.shape[:-1], weight_OI.shape[0]), x)
        y_TO = _linear(input_TI, weight_OI, bias_O, _flat(y))
        if p > 0:
            dropout = Dropout(p, seed, parts.dropout)
            input_TI = dropout.zeroed(input_TI) if up_TI is None else dropout.zero_(input_TI)
            short = dropout.short_list()
        reduced_TR = _thin(input_TI, a)
        y_TO.addmm_(reduced_TR, b.t(), alpha=scale)
        if again is not None:
            again.offer(y, _output(again.kept(x_TI), weight_OI, bias_O, reduced_TR, b, scale))
        ctx.save_for_backward(x_TI, up_TI, weight_OI, a, b, reduced_TR)
        ctx.scale, ctx.p, ctx.seed, ctx.short, ctx.dtypes = scale, p, seed, short, (a_RI.dtype, b_OR.dtype)
        ctx.parts, ctx.shape = parts, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_TO = _flat(grad)
        x_TI, up_TI, weight_OI, a, b, reduced_TR = ctx.saved_tensors
        needs_x, needs_up, needs_weight, needs_bias, needs_a, needs_b = ctx.needs_input_grad[:6]
        grad_input = grad_weight = grad_bias = grad_a = grad_b = grad_up = None
        grad_reduced_TR = _thin(grad_TO, b.t()).mul_(ctx.scale)
        parts: Parts = ctx.parts
        dropout = Dropout(ctx.p, ctx.seed, parts.dropout, ctx.short) if ctx.p > 0 else None
        if needs_x or needs_up:
            grad_input = torch.mm(grad_TO, weight_OI, out=_flat(empty(ctx.shape, grad_TO)))
            if dropout is None:
                grad_input.addmm_(grad_reduced_TR, a)
            else:
                spread_TI = empty_like(grad_input)
                dropout.add_zeroed_(grad_input, torch.mm(grad_reduced_TR, a, out=spread_TI))
        input_TI = x_TI
        if up_TI is not None and (needs_weight or needs_a):
            input_TI = parts.silu_mul(x_TI, up_TI)
        if needs_weight:
            grad_weight = torch.mm(grad_TO.t(), input_TI)
        if needs_a:
            if dropout is not None:
                input_TI = dropout.zeroed(input_TI) if up_TI is None else dropout.zero_(input_TI)
            grad_a = _sum_of_products(grad_reduced_TR, input_TI).to(ctx.dtypes[0])
        if needs_b:
            grad_b = _sum_of_products(reduced_TR, grad_TO).t().to(ctx.dtypes[1]).mul_(ctx.scale)
        if needs_bias:
            grad_bias = grad_TO.sum(0)
        del input_TI
        if grad_input is not None and up_TI is not None:
            grad_input, grad_up = parts.silu_mul_backward(grad_input, x_TI, up_TI)
        grad_x, grad_up = (None if grad is None else grad.view(ctx.shape) for grad in (grad_input, grad_up))
        return grad_x, grad_up, grad_weight, grad_bias, grad_a, grad_b, None, None, None, None


def _output(
    x: Make, weight_OI: Tensor, bias_O: Tensor | None, reduced_TR: Tensor, b: Tensor, scale: float
) -> Make:
    """Return how the layer's output is made again: A(drop(x)) is kept anyway, so no mask is drawn."""

    def make() -> Tensor:
        x_TI = _flat(x())
        y_TO = _linear(x_TI, weight_OI, bias_O, empty((x_TI.shape[0], weight_OI.shape[0]), x_TI))
        return y_TO.addmm_(reduced_TR, b.t(), alpha=scale)

    return make


def lora_linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    adapter: Adapter,
    *,
    up: Tensor | None = None,
    parts: Parts = PLAIN_PARTS,
    again: Recompute | None = None,
) -> Tensor:
    """Return x W^T + b + scale B(A(drop(x))) for x [..., I]; with `up`, of silu(x) * up in the place of x.

    With `again`, which must be active, whoever saves the result for the backward pass has it made again there.
    """
    p = adapter.dropout_p
    return _LoraLinear.apply(
        x,
        up,
        weight_OI,
        bias_O,
        adapter.a_RI,
        adapter.b_OR,
        adapter.scale / (1 - p),
        p,
        parts,
        again,
    )
