"""Operators that torch has on devices only: recurrent cells, parts of synchronised batch norm, wide products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import kernel


def with_bias(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias


@kernel("aten::_thnn_fused_lstm_cell")
def lstm_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    cx: Tensor,
    input_bias: Tensor | None,
    hidden_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the new hidden and cell state, and the four gates after their activations."""
    gates = with_bias(input_gates, input_bias) + with_bias(hidden_gates, hidden_bias)
    entry, forget, cell, out = gates.chunk(4, 1)
    entry, forget, cell, out = entry.sigmoid(), forget.sigmoid(), cell.tanh(), out.sigmoid()
    cy = forget * cx + entry * cell
    return out * cy.tanh(), cy, torch.cat((entry, forget, cell, out), 1)


@kernel("aten::_thnn_fused_lstm_cell_backward_impl")
def lstm_cell_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    cy: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the gates, of cx and of a bias."""
    entry, forget, cell, out = workspace.chunk(4, 1)
    state = cy.tanh()
    upstream = torch.zeros_like(cy) if grad_hy is None else grad_hy
    through = upstream * out * (1 - state * state) + (0 if grad_cy is None else grad_cy)
    gates = torch.cat(
        (
            through * cell * entry * (1 - entry),
            through * cx * forget * (1 - forget),
            through * entry * (1 - cell * cell),
            upstream * state * out * (1 - out),
        ),
        1,
    )
    return gates, through * forget, gates.sum(0) if has_bias else None


@kernel("aten::_thnn_fused_gru_cell")
def gru_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    hx: Tensor,
    input_bias: Tensor | None,
    hidden_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the new state and what backward needs: both gates, the candidate, hx and the candidate's hidden part."""
    input_parts = with_bias(input_gates, input_bias).chunk(3, 1)
    hidden_parts = with_bias(hidden_gates, hidden_bias).chunk(3, 1)
    reset = (input_parts[0] + hidden_parts[0]).sigmoid()
    update = (input_parts[1] + hidden_parts[1]).sigmoid()
    candidate = (input_parts[2] + reset * hidden_parts[2]).tanh()
    return candidate + update * (hx - candidate), torch.cat(
        (reset, update, candidate, hx, hidden_parts[2]), 1
    )


@kernel("aten::_thnn_fused_gru_cell_backward")
def gru_cell_backward(grad_hy: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    """Gradients of the input gates, the hidden gates, hx and both biases."""
    reset, update, candidate, hx, hidden = workspace.chunk(5, 1)
    new = grad_hy * (1 - update) * (1 - candidate * candidate)
    turned = new * hidden * reset * (1 - reset)
    kept = grad_hy * (hx - candidate) * update * (1 - update)
    inputs, hiddens = torch.cat((turned, kept, new), 1), torch.cat((turned, kept, new * reset), 1)
    biases = (inputs.sum(0), hiddens.sum(0)) if has_bias else (None, None)
    return inputs, hiddens, grad_hy * update, *biases


def per_channel(x: Tensor) -> tuple[int, ...]:
    """All dimensions but the channels'."""
    return tuple(dim for dim in range(x.dim()) if dim != 1)


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.float().view(1, -1, *[1] * (x.dim() - 2))


@kernel("aten::batch_norm_stats")
def batch_norm_stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide, dims = input.float(), per_channel(input)
    return wide.mean(dims), torch.rsqrt(wide.var(dims, unbiased=False) + eps)


def merged(
    mean: Tensor,
    variance: Tensor,
    total: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of all ranks; moves the running statistics."""
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_((variance * total / (total - 1)).to(running_var.dtype), momentum)
    return mean, torch.rsqrt(variance + eps)


@kernel("aten::batch_norm_gather_stats_with_counts")
def batch_norm_gather_stats(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """mean and invstd have one row a rank."""
    weights = (counts / counts.sum()).view(-1, 1)
    centre = (mean * weights).sum(0)
    variance = ((invstd.pow(-2) - eps + (mean - centre).pow(2)) * weights).sum(0)
    return merged(centre, variance, counts.sum(), running_mean, running_var, momentum, eps)


@kernel("batch_norm_reduce")
def batch_norm_reduce(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares; `eps` is documented as reserved."""
    wide, dims = input.float(), per_channel(input)
    return wide.sum(dims), wide.pow(2).sum(dims)


@kernel("batch_norm_gather_stats_update")
def batch_norm_gather_stats_update(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """mean and invstd are what their names do not say: the sums and the sums of squares, one row a rank."""
    total = counts.sum()
    centre = mean.sum(0) / total
    variance = invstd.sum(0) / total - centre.pow(2)
    return merged(centre, variance, total, running_mean, running_var, momentum, eps)


@kernel("aten::batch_norm_elemt", "aten::batch_norm_elemt.out")
def batch_norm_elemt(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """`eps` is in invstd already."""
    normal = (input.float() - along_channels(mean, input)) * along_channels(invstd, input)
    if weight is not None:
        normal = normal * along_channels(weight, input)
    return (normal if bias is None else normal + along_channels(bias, input)).to(input.dtype)


@kernel("aten::batch_norm_backward_reduce")
def batch_norm_backward_reduce(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Returns the sums of dy and of dy * (x - mean), and the gradients of weight and bias."""
    dims, upstream = per_channel(input), grad_out.float()
    sum_dy = upstream.sum(dims)
    sum_dy_xmu = (upstream * (input.float() - along_channels(mean, input))).sum(dims)
    kind = input.dtype if weight is None else weight.dtype
    return (
        sum_dy,
        sum_dy_xmu,
        (sum_dy_xmu * invstd).to(kind) if weight_g else None,
        sum_dy.to(kind) if bias_g else None,
    )


@kernel("aten::batch_norm_backward_elemt")
def batch_norm_backward_elemt(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    total = count.sum()
    centred = input.float() - along_channels(mean, input)
    projection = centred * along_channels(invstd.pow(2) * sum_dy_xmu / total, input)
    scale = invstd if weight is None else invstd * weight.float()
    inner = grad_out.float() - along_channels(sum_dy / total, input) - projection
    return (inner * along_channels(scale, input)).to(input.dtype)


@kernel("aten::mm.dtype", "aten::bmm.dtype", "aten::mm.dtype_out", "aten::bmm.dtype_out")
def product(self: Tensor, mat2: Tensor, out_dtype: torch.dtype) -> Tensor:
    return self.to(out_dtype) @ mat2.to(out_dtype)


@kernel("aten::addmm.dtype", "aten::addmm.dtype_out")
def addmm(
    self: Tensor, mat1: Tensor, mat2: Tensor, out_dtype: torch.dtype, beta: float, alpha: float
) -> Tensor:
    return torch.addmm(*(x.to(out_dtype) for x in (self, mat1, mat2)), beta=beta, alpha=alpha)


@kernel("aten::baddbmm.dtype", "aten::baddbmm.dtype_out")
def baddbmm(
    self: Tensor, batch1: Tensor, batch2: Tensor, out_dtype: torch.dtype, beta: float, alpha: float
) -> Tensor:
    return torch.baddbmm(*(x.to(out_dtype) for x in (self, batch1, batch2)), beta=beta, alpha=alpha)


@kernel("aten::_masked_scale")
def masked_scale(self: Tensor, mask: Tensor, scale: float) -> Tensor:
    return self * mask * scale


@kernel("aten::_conv_depthwise2d", "aten::_conv_depthwise2d.out")
def conv_depthwise2d(
    self: Tensor,
    weight: Tensor,
    kernel_size: list[int],
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return F.conv2d(self, weight, bias, stride, padding, dilation, groups=self.shape[1])


@kernel("aten::histc", "aten::histc.out")
def histc(self: Tensor, bins: int, min: float, max: float) -> Tensor:
    """Integers too, as devices count them and the CPU does not: tokens of experts."""
    values = self if self.is_floating_point() else self.double()
    return torch.histc(values, bins, min, max).to(self.dtype)
