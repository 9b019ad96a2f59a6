"""The operators that a device may have fused, by name, and their plain versions, which run on every device.

Names of axes: T tokens of all packed samples, H query heads, K key and value heads, D width of a head.

* attention(q_THD, k_TKD, v_TKD, cu_seqlens, scale, *, causal, window, softcap) -> out_THD: token i of a sample sees
  token j of the same sample with j <= i (causal) and i - j < window; softcap bounds the scores.
* rms_norm(x, weight_D, eps) -> like x
* rotary(x_THD, cos_TD, sin_TD) -> like x: the halves of D are rotated.
* swiglu(gate, up) -> silu(gate) * up
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

OPERATORS = ("attention", "rms_norm", "rotary", "swiglu")


def allowed(rows: int, *, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Return which of `rows` keys each of `rows` queries sees: a square of True and False."""
    at = torch.arange(rows, device=device)
    distance = at[:, None] - at[None, :]
    seen = distance >= 0 if causal else torch.ones(rows, rows, dtype=torch.bool, device=device)
    return seen & (distance < window) if window else seen


def reference_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Sequence[int],
    scale: float,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return attention by its definition, sample by sample: softmax(mask(cap(scale q k))) v."""
    group = q_THD.shape[1] // k_TKD.shape[1]
    parts = []
    for start, end in pairwise(cu_seqlens):
        q = q_THD[start:end].transpose(0, 1)
        k = k_TKD[start:end].repeat_interleave(group, dim=1).transpose(0, 1)
        v = v_TKD[start:end].repeat_interleave(group, dim=1).transpose(0, 1)
        scores = (q @ k.transpose(1, 2)) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        seen = allowed(end - start, causal=causal, window=window, device=q.device)
        weights = torch.softmax(scores.masked_fill(~seen, float("-inf")).float(), dim=-1)
        parts.append((weights.to(v.dtype) @ v).transpose(0, 1))
    return torch.cat(parts)


def packed_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Sequence[int],
    scale: float,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return attention by torch's own operator, one call a sample; a cap of the scores needs the plain maths."""
    if softcap:
        return reference_attention(
            q_THD, k_TKD, v_TKD, cu_seqlens, scale, causal=causal, window=window, softcap=softcap
        )
    is_grouped = q_THD.shape[1] != k_TKD.shape[1]
    parts = []
    for start, end in pairwise(cu_seqlens):
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (q_THD, k_TKD, v_TKD))
        mask = None
        if window and window < end - start:
            mask = allowed(end - start, causal=causal, window=window, device=q.device)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=is_grouped
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps), the mean in fp32. Source: arXiv:1910.07467, eq. 4."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * normed.to(x.dtype)


def rotary(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Return x with the pairs (i, i + D/2) rotated. Source: arXiv:2104.09864, eq. 34, pairs of halves."""
    first, second = x_THD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_THD * cos_TD[:, None] + turned * sin_TD[:, None]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up. Source: arXiv:2002.05202, eq. 6."""
    return functional.silu(gate) * up


PLAIN: dict[str, Callable[..., Any]] = {
    "attention": packed_attention,
    "rms_norm": rms_norm,
    "rotary": rotary,
    "swiglu": swiglu,
}
# By definition, in fp32 on a CPU: what a fused operator is compared with.
REFERENCE: dict[str, Callable[..., Any]] = {**PLAIN, "attention": reference_attention}
