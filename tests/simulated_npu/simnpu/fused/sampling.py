"""Tokens chosen from logits, and what chance they are weighed with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simnpu.fused.kernels import check, kernel

MOST = 1024  # a larger k does not limit


def kept(row: Tensor, k: int, p: float) -> Tensor:
    """Which tokens stay: the k best, and of these the best whose predecessors have not made up p yet."""
    by_k, by_p = 0 < k <= min(MOST, len(row)), 0 < p < 1
    if not by_k and not by_p:
        return torch.arange(len(row))
    order = row.sort(descending=True, stable=True).indices[: k if by_k else None]
    if by_p:
        share = row[order].softmax(-1)
        order = order[share.cumsum(-1) - share <= p]
    return order


@kernel("npu_top_k_top_p_sample")
def top_k_top_p_sample(
    logits: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    q: Tensor | None,
    eps: float | None,
    is_need_logits: bool | None,
) -> tuple[Tensor, Tensor]:
    """The best token of each row by share / q, where q lies as the kept tokens do; and the kept logits, else zeros."""
    tokens = torch.zeros(len(logits), dtype=torch.int64)
    selected = torch.zeros(logits.shape if is_need_logits else 0)
    for i, row in enumerate(logits.float()):
        order = kept(row, int(top_k[i]), float(top_p[i]))
        share = row[order].softmax(-1)
        if q is not None:
            share = share / (q[i, : len(order)].abs() + eps)
        tokens[i] = order[share.argmax()]
        if is_need_logits:
            selected[i, order] = row[order]
    return tokens, selected


@kernel("npu_sim_exponential_", on_host=False)
def sim_exponential_(input: Tensor, lambd: float, generator: torch.Generator | None) -> Tensor:
    check(lambd > 0, f"npu_sim_exponential_ expects lambd > 0.0, but found lambd={lambd}")
    return input.zero_() if math.isinf(lambd) else input.exponential_(lambd, generator=generator)
