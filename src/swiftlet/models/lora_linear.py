"""The arithmetic of LoRA's linear layers, with a backward pass that saves and recomputes the least.

y = x W^T + b + s B(A(drop(x))) keeps x (shared with every layer that reads it), A(drop(x)) and one number for the
mask, with its list where that is short; nothing is kept for the frozen weight. Adapters in fp32 over a base in a
shorter type are multiplied in the base's type, as autocast does, and get their gradient in fp32.

Layers over one x (query, key and value; gate and up) are computed together: one mask of dropout, one product with all
A, and a gradient of x that the products add up.

Shapes: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swiftlet.device.kernels import Kernel, product
from swiftlet.device.kernels import dropout as plain_dropout
from swiftlet.models.adapter_copies import AdapterCopies, Copies
from swiftlet.models.arena import empty, empty_like
from swiftlet.models.dropout import Dropout, draw_seed
from swiftlet.models.recompute import Make, Recompute
from swiftlet.models.row_keys import RowKeys
from swiftlet.models.swiglu import silu_mul, silu_mul_backward


class Adapter(NamedTuple):
    """What LoRA adds to a linear layer: scale B(A(drop(x)))."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    dropout_p: float


class Layer(NamedTuple):
    """A linear layer and its adapter; the number tells it from others where masks of dropout are drawn."""

    weight_OI: Tensor
    bias_O: Tensor | None
    adapter: Adapter
    number: int = 0


class Parts(NamedTuple):
    """The elementwise steps of the layer; a device may have its own, see device/kernels.py.

    `keys` decide over masks, where rows have some; `copies` are adapters in the base's type, made at once.
    """

    silu_mul: Callable[[Tensor, Tensor], Tensor] = silu_mul
    silu_mul_backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = silu_mul_backward
    dropout: Kernel = plain_dropout
    keys: RowKeys | None = None
    copies: AdapterCopies | None = None


PLAIN_PARTS = Parts()


class Shared(NamedTuple):
    """What layers over one input have in common: their mask and steps; and the scale of each, see `lora_linears`."""

    dropout_p: float
    number: int
    scales: tuple[float, ...]
    parts: Parts
    again: Recompute | None


SMALLEST_PART = 128


def _thin(x_TI: Tensor, matrix_RI: Tensor) -> Tensor:
    """Return x [T, I] times matrix^T [I, R] as [T, R]."""
    is_cpu = x_TI.device.type == "cpu"  # whose BLAS is a quarter faster where both are read along I
    return torch.mm(x_TI, (matrix_RI.contiguous() if is_cpu else matrix_RI).t())


def _sum_of_products(thin_TR: Tensor, x_TI: Tensor, dtype: torch.dtype) -> Tensor:
    """Return thin^T [R, T] times x [T, I]: in fp32 on a CPU by parts of I, as BLAS shares so few rows badly."""
    num_parts = 2 * torch.get_num_threads()
    is_blas = x_TI.device.type == "cpu" and x_TI.dtype == torch.float32
    if not is_blas or x_TI.shape[1] % num_parts or x_TI.shape[1] < num_parts * SMALLEST_PART:
        return product(thin_TR.t(), x_TI, dtype)
    parts_PTi = x_TI.view(x_TI.shape[0], num_parts, -1).transpose(0, 1)
    sums_PRi = torch.bmm(thin_TR.t().expand(num_parts, -1, -1), parts_PTi)
    return sums_PRi.transpose(0, 1).flatten(1)


def _grad_b(thin_TR: Tensor, grad_TO: Tensor, dtype: torch.dtype) -> Tensor:
    """Return grad^T [O, T] times thin [T, R]; autograd copies what is not [O, R] in memory."""
    if grad_TO.device.type == "cpu":
        return _sum_of_products(thin_TR, grad_TO, dtype).t().to(dtype)
    return product(grad_TO.t(), thin_TR, dtype)


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x.mul_(factor)


def _flat(x: Tensor) -> Tensor:
    """Return x [..., F] as [T, F]."""
    return x.reshape(-1, x.shape[-1])


def _linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, y_TO: Tensor) -> Tensor:
    """Write x W^T + b into y and return it."""
    if bias_O is None:
        return torch.mm(x_TI, weight_OI.t(), out=y_TO)
    return torch.addmm(bias_O, x_TI, weight_OI.t(), out=y_TO)


class _LoraLinears(torch.autograd.Function):
    """Layers over one x, or one layer over silu(gate) * up, which is made again in the backward pass instead of kept.

    Given are the weights of all layers, then their biases, A and B. S is the sum of the ranks: all A are one matrix, so
    that x is dropped, multiplied and read once for all layers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor | None, shared: Shared, *tensors: Any) -> tuple[Tensor, ...]:
        p, number, scales, parts, again = shared
        weights, biases, all_a, all_b = _quarters(tensors)
        x_TI, up_TI = _flat(x), None if up is None else _flat(up)
        input_TI = x_TI if up_TI is None else parts.silu_mul(x_TI, up_TI)
        copies = None if parts.copies is None else parts.copies.of(all_a, all_b, scales, x_TI.dtype)
        if copies is None:
            a_SI, all_b_OR = _joined([a.to(x_TI.dtype) for a in all_a], 0), [b.to(x_TI.dtype) for b in all_b]
            copies = Copies(a_SI, a_SI, all_b_OR, all_b_OR)
        else:  # which have the scale in them
            scales = (1.0,) * len(scales)
        all_b_OR = copies.all_b_OR
        # whole and no views of another, so that what is added to one in place needs no copy in the backward pass
        outputs = tuple(empty((*x.shape[:-1], weight.shape[0]), x) for weight in weights)
        for y, weight, bias in zip(outputs, weights, biases, strict=True):
            _linear(input_TI, weight, bias, _flat(y))
        source = short = None
        if p > 0:
            rows = None if parts.keys is None else parts.keys.of(len(x_TI), number)
            source = draw_seed() if rows is None else rows
            dropout = Dropout(p, source, parts.dropout)
            input_TI = dropout.zeroed(input_TI) if up_TI is None else dropout.zero_(input_TI)
            short = dropout.short_list()
        reduced_TS = _thin(input_TI, copies.scaled_a_SI)
        all_reduced_TR = reduced_TS.split([a.shape[0] for a in all_a], dim=1)
        for y, reduced_TR, b_OR, scale in zip(outputs, all_reduced_TR, all_b_OR, scales, strict=True):
            _flat(y).addmm_(reduced_TR, b_OR.t(), alpha=scale)
        if again is not None:
            last = weights[-1], biases[-1], all_reduced_TR[-1], all_b_OR[-1], scales[-1]
            again.offer(outputs[-1], _output(again.kept(x_TI), *last))
        ctx.save_for_backward(x_TI, up_TI, copies.a_SI, reduced_TS, *weights, *copies.all_scaled_b_OR)
        ctx.p, ctx.source, ctx.short, ctx.parts, ctx.shape = p, source, short, parts, x.shape
        ctx.scales, ctx.dtypes = scales, [(a.dtype, b.dtype) for a, b in zip(all_a, all_b, strict=True)]
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        numbers, parts, scales = range(len(grads)), ctx.parts, ctx.scales
        all_grad_TO = [_flat(grad) for grad in grads]
        x_TI, up_TI, a_SI, reduced_TS, *kept = ctx.saved_tensors
        weights, all_b_OR = kept[: len(grads)], kept[len(grads) :]
        needs_x, needs_up = ctx.needs_input_grad[:2]
        needs_weight, needs_bias, needs_a, needs_b = _quarters(ctx.needs_input_grad[3:])
        grad_reduced_TS = _joined(
            [_times(_thin(all_grad_TO[i], all_b_OR[i].t()), scales[i]) for i in numbers], 1
        )
        dropout = Dropout(ctx.p, ctx.source, parts.dropout, ctx.short) if ctx.p > 0 else None
        input_TI = x_TI
        if up_TI is not None and any(needs_weight + needs_a):
            input_TI = parts.silu_mul(x_TI, up_TI)
        grad_weights = [torch.mm(all_grad_TO[i].t(), input_TI) if needs_weight[i] else None for i in numbers]
        grad_biases = [all_grad_TO[i].sum(0) if needs_bias[i] else None for i in numbers]
        ranks = [b_OR.shape[1] for b_OR in all_b_OR]
        all_grad_a: list[Tensor | None] = [None] * len(grads)
        if any(needs_a):
            if dropout is not None:
                input_TI = dropout.zeroed(input_TI) if up_TI is None else dropout.zero_(input_TI)
            all_grad_RI = _sum_of_products(grad_reduced_TS, input_TI, ctx.dtypes[0][0]).split(ranks)
            all_grad_a = [all_grad_RI[i].to(ctx.dtypes[i][0]) for i in numbers]
        del input_TI
        all_grad_b: list[Tensor | None] = [None] * len(grads)
        for i, reduced_TR in enumerate(reduced_TS.split(ranks, dim=1)):
            if needs_b[i]:
                grad_OR = _grad_b(reduced_TR, all_grad_TO[i], ctx.dtypes[i][1])
                all_grad_b[i] = _times(grad_OR, scales[i])
        grad_input = grad_up = None
        if needs_x or needs_up:  # last, when nothing else of its size is there
            grad_input = torch.mm(all_grad_TO[0], weights[0], out=_flat(empty(ctx.shape, grads[0])))
            for i in numbers[1:]:
                grad_input.addmm_(all_grad_TO[i], weights[i])
            if dropout is None:
                grad_input.addmm_(grad_reduced_TS, a_SI)
            else:
                spread_TI = torch.mm(grad_reduced_TS, a_SI, out=empty_like(grad_input))
                dropout.add_zeroed_(grad_input, spread_TI)
                del spread_TI
        if grad_input is not None and up_TI is not None:
            grad_input, grad_up = parts.silu_mul_backward(grad_input, x_TI, up_TI)
        grad_x, grad_up = (None if grad is None else grad.view(ctx.shape) for grad in (grad_input, grad_up))
        return grad_x, grad_up, None, *grad_weights, *grad_biases, *all_grad_a, *all_grad_b


def _joined(matrices: list[Tensor], dim: int) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim)


def _quarters(values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    size = len(values) // 4
    return [values[i * size : (i + 1) * size] for i in range(4)]


def _output(
    x: Make, weight_OI: Tensor, bias_O: Tensor | None, reduced_TR: Tensor, b: Tensor, scale: float
) -> Make:
    """Return how the layer's output is made again: A(drop(x)) is kept anyway, so no mask is drawn."""

    def make() -> Tensor:
        x_TI = _flat(x())
        y_TO = _linear(x_TI, weight_OI, bias_O, empty((x_TI.shape[0], weight_OI.shape[0]), x_TI))
        return y_TO.addmm_(reduced_TR, b.t(), alpha=scale)

    return make


def lora_linears(
    x: Tensor,
    layers: Sequence[Layer],
    *,
    up: Tensor | None = None,
    parts: Parts = PLAIN_PARTS,
    again: Recompute | None = None,
) -> tuple[Tensor, ...]:
    """Return x W^T + b + scale B(A(drop(x))) of each layer for x [..., I]; with `up`, of silu(x) * up instead of x.

    The layers have one mask of dropout, whose probability and number are the first one's.
    With `again`, which must be active, whoever saves the last result for the backward pass has it made again there.
    """
    p = layers[0].adapter.dropout_p
    scales = tuple(layer.adapter.scale / (1 - p) for layer in layers)
    adapters = [layer.adapter for layer in layers]
    tensors = (
        *(layer.weight_OI for layer in layers),
        *(layer.bias_O for layer in layers),
        *(adapter.a_RI for adapter in adapters),
        *(adapter.b_OR for adapter in adapters),
    )
    return _LoraLinears.apply(x, up, Shared(p, layers[0].number, scales, parts, again), *tensors)


def lora_linear(x: Tensor, layer: Layer, *, up: Tensor | None = None, parts: Parts = PLAIN_PARTS) -> Tensor:
    """Return what `lora_linears` does of one layer."""
    return lora_linears(x, [layer], up=up, parts=parts)[0]
