"""Softmax fused with a mask, with labels or with dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import gradients, kernel
from simnpu.fused.random import keep_bits, next_seed, packed, unpacked

MASKED = -10000.0


def hidden(x: Tensor, mask: Tensor, fixed_triu_mask: bool) -> Tensor:
    """True where a score is masked."""
    return torch.ones(x.shape[-2:], dtype=torch.bool).triu(1) if fixed_triu_mask else mask.bool()


@kernel("npu_scaled_masked_softmax")
def scaled_masked_softmax(x: Tensor, mask: Tensor, scale: float, fixed_triu_mask: bool) -> Tensor:
    scores = (x.float() * scale).masked_fill(hidden(x, mask, fixed_triu_mask), MASKED)
    return scores.softmax(-1).to(x.dtype)


def softmax_backward(grad: Tensor, y: Tensor, dim: int) -> Tensor:
    upstream, weights = grad.float(), y.float()
    return (upstream - (upstream * weights).sum(dim, keepdim=True)) * weights


@kernel("npu_scaled_masked_softmax_backward")
def scaled_masked_softmax_backward(
    y_grad: Tensor, y: Tensor, mask: Tensor, scale: float, fixed_triu_mask: bool
) -> Tensor:
    inner = softmax_backward(y_grad, y, -1) * scale
    return inner.masked_fill(hidden(y, mask, fixed_triu_mask), 0).to(y_grad.dtype)


@kernel("npu_softmax_cross_entropy_with_logits")
def cross_entropy_with_logits(input: Tensor, labels: Tensor) -> Tensor:
    """One loss for each row; labels are weights of all classes."""
    return -(labels.float() * input.float().log_softmax(-1)).sum(-1).to(input.dtype)


@kernel("npu_softmax_cross_entropy_with_logits_backward")
def cross_entropy_with_logits_backward(grad: Tensor, input: Tensor, labels: Tensor) -> Tensor:
    return gradients(lambda x: cross_entropy_with_logits(x, labels), [input], [grad])[0]


@kernel("npu_dropout_with_add_softmax")
def dropout_with_add_softmax(
    input: Tensor, x1: Tensor, alpha: float, prob: float, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the packed mask, softmax(x1 + input * alpha), and that with dropout of probability `prob`."""
    weights = (x1.float() + input.float() * alpha).softmax(dim).to(input.dtype)
    bits = keep_bits(weights.numel(), prob, *next_seed())
    kept = weights * bits.view(weights.shape) / (1 - prob) if prob < 1 else torch.zeros_like(weights)
    return packed(bits), weights, kept


@kernel("npu_dropout_with_add_softmax_backward")
def dropout_with_add_softmax_backward(
    grad: Tensor, mask: Tensor, softmax_out: Tensor, alpha: float, prob: float, dim: int
) -> tuple[Tensor, Tensor]:
    bits = unpacked(mask, grad.numel()).view(grad.shape)
    upstream = grad * bits / (1 - prob) if prob < 1 else torch.zeros_like(grad)
    inner = softmax_backward(upstream, softmax_out, dim).to(grad.dtype)
    return inner * alpha, inner


@kernel("npu_attn_softmax_")
def attn_softmax_(input: Tensor) -> Tensor:
    return input.copy_(input.float().softmax(-1))


@kernel("npu_attn_softmax_backward_")
def attn_softmax_backward_(input: Tensor, grad_output: Tensor, values: Tensor) -> Tensor:
    """`input` holds weights and gets the gradient of the scores, where the result was weights @ values."""
    upstream = grad_output.float() @ values.float().transpose(-1, -2)
    return input.copy_(softmax_backward(upstream, input, -1))


@kernel("npu_masked_softmax_with_rel_pos_bias")
def masked_softmax_with_rel_pos_bias(
    x: Tensor,
    atten_mask: Tensor | None,
    relative_pos_bias: Tensor,
    scale_value: float,
    inner_precision_mode: int,
) -> Tensor:
    """softmax(x * scale + mask + bias) of windows [B, W, N, S, S]."""
    scores = x.float() * scale_value + relative_pos_bias.float()
    return (scores if atten_mask is None else scores + atten_mask.float()).softmax(-1).to(x.dtype)
