"""Attention over the two ways through each node: keys and values of (i, j) and of (j, k) for the query of (i, k)."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel

HIDDEN = -4e9  # added before the scale
REPEATS = 8  # maximum and sum are kept this often


def probabilities(
    q: Tensor, first: Tensor, second: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over j, [B, N, I, K, J], with its maximum and sum."""
    check(
        q.dim() == 5,
        f"npu_fused_floyd_attention: query has {q.dim()} dimensions, it must have 5: [B, N, I, K, D]",
    )
    scores = torch.einsum("bnikd,bnijd->bnikj", q, first) + torch.einsum("bnikd,bnjkd->bnikj", q, second)
    if mask is not None:
        scores = scores + mask.bool() * HIDDEN
    scores = scores * scale
    maximum = scores.amax(-1, keepdim=True)
    total = (scores - maximum).exp().sum(-1, keepdim=True)
    return (scores - maximum).exp() / total, maximum, total


def attended(
    q: Tensor, k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum, sum and result in fp32."""
    q, k1, v1, k2, v2 = (x.float() for x in (q, k1, v1, k2, v2))
    weights, maximum, total = probabilities(q, k1, k2, mask, scale)
    out = torch.einsum("bnikj,bnijd->bnikd", weights, v1) + torch.einsum("bnikj,bnjkd->bnikd", weights, v2)
    return maximum, total, out


@kernel("npu_fused_floyd_attention")
def floyd_attention(
    query_ik: Tensor, key_ij: Tensor, value_ij: Tensor, key_jk: Tensor, value_jk: Tensor, atten_mask: Tensor | None,
    scale_value: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Maximum and sum [B, N, I, K, 8], then the result; a mask that is true hides."""
    maximum, total, out = attended(query_ik, key_ij, value_ij, key_jk, value_jk, atten_mask, scale_value)
    statistics = (x.expand(*x.shape[:-1], REPEATS).contiguous() for x in (maximum, total))
    return (*statistics, out.to(query_ik.dtype))


@kernel("npu_fused_floyd_attention_backward")
def floyd_attention_backward(
    grad_output: Tensor, query_ik: Tensor, key_ij: Tensor, value_ij: Tensor, key_jk: Tensor, value_jk: Tensor,
    attention_out: Tensor, softmax_max: Tensor, softmax_sum: Tensor, atten_mask: Tensor | None, scale_value: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the query and of both keys and values; the softmax is taken again, not from its statistics."""
    inputs = (query_ik, key_ij, value_ij, key_jk, value_jk)
    return gradients(
        lambda *leaves: attended(*leaves, atten_mask, scale_value)[2], inputs, (grad_output.float(),)
    )
