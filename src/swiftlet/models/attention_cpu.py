"""Attention of packed samples on a CPU, forward and backward, block of queries by block of queries.

fp32 uses torch's flash operator, and so do short samples of small models. In bf16 that operator spends its time
converting; products of whole blocks with the processor's bf16 multiplier and a softmax that keeps its sums in fp32 are
two to five times faster, so there (and where scores are capped or the window is short) weights are made block by block
and made again in the backward pass.

There a product is compiled for its shape at its first use and what is compiled is kept, half a megabyte each (see
rounding.py), so the last block of a sample gets zeros behind it: queries whose results nobody reads, and keys behind
all queries.

Shapes: T tokens, Q heads, K key-value heads, G = Q / K heads of a group, D head size, M queries and N keys of a block,
zeros included.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swiftlet.device.kernels import AttentionRules
from swiftlet.models.arena import empty, empty_like
from swiftlet.models.rounding import multiple_of

BLOCK = 256
SMALL = 4e6  # multiplications of a sample's scores; below, the calls for a block take longer than fp32's one
MOST_KEPT = 2**13  # keys before a block, for which a bias is kept: 4 MB in bf16


class Block(NamedTuple):
    """Queries [start, end) and the keys [first, end) that they see, counted over all tokens; zeros go behind both."""

    first: int
    start: int
    end: int
    num_zeros: int = 0


def blocks_of(begin: int, end: int, window: int | None, multiple: int = 1) -> list[Block]:
    """Return the blocks of a sample [begin, end); with zeros, the queries of each are a multiple of `multiple`."""
    reach = end - begin if window is None else window - 1
    starts_and_ends = [(start, min(start + BLOCK, end)) for start in range(begin, end, BLOCK)]
    return [
        Block(max(begin, start - reach), start, end, (start - end) % multiple)
        for start, end in starts_and_ends
    ]


def bias_of(block: Block, window: int | None, like: Tensor) -> Tensor:
    """Return [M, N] of 0 where a query sees a key and -inf where not."""
    before = block.start - block.first
    reach = 1 << (before - 1).bit_length() if before else 0  # few different ones
    is_kept = reach <= MOST_KEPT and type(like) is Tensor  # what a trace makes has no numbers
    whole = (_band if is_kept else _band.__wrapped__)(reach, window, like.dtype)
    num_queries = block.end - block.start + block.num_zeros
    return whole[:num_queries, reach - before : reach + num_queries]


@lru_cache(maxsize=16)
def _band(reach: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return the bias of `BLOCK` queries for as many keys and `reach` before them; all layers and samples share it."""
    distance = torch.arange(reach, reach + BLOCK)[:, None] - torch.arange(reach + BLOCK)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_QTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, cu_seqlens: list[int], rules: AttentionRules
    ) -> Tensor:
        num_heads, num_tokens, size = q_QTD.shape
        out_TQD = empty((num_tokens, num_heads, size), q_QTD)
        out_KGTD = _grouped(out_TQD.transpose(0, 1), k_KTD.shape[0])
        q_KGTD = _grouped(q_QTD, k_KTD.shape[0])
        for begin, end in pairwise(cu_seqlens):
            for block in blocks_of(begin, end, rules.window, multiple_of(q_QTD)):
                keys, values = _keys(k_KTD, block), _keys(v_KTD, block)
                weights, _ = _weights(_queries(q_KGTD, block), keys, block, rules)
                _put_queries(out_KGTD, block, torch.bmm(weights, values))
        ctx.save_for_backward(q_QTD, k_KTD, v_KTD)
        ctx.cu_seqlens, ctx.rules = cu_seqlens, rules
        return out_TQD

    @staticmethod
    def backward(ctx: Any, grad_TQD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_QTD, k_KTD, v_KTD = ctx.saved_tensors
        grad_q, grad_k, grad_v = empty_like(q_QTD), empty_like(k_KTD), empty_like(v_KTD)
        q_KGTD, grad_q_KGTD, grad_KGTD = (
            _grouped(tensor, k_KTD.shape[0]) for tensor in (q_QTD, grad_q, grad_TQD.transpose(0, 1))
        )
        for begin, end in pairwise(ctx.cu_seqlens):
            blocks = blocks_of(begin, end, ctx.rules.window, multiple_of(q_QTD))
            sums = (
                [
                    tensor.new_zeros((tensor.shape[0], end - begin, tensor.shape[2]), dtype=torch.float32)
                    for tensor in (k_KTD, v_KTD)
                ]
                if len(blocks) > 1
                else None
            )
            for block in blocks:
                keys, values = _keys(k_KTD, block), _keys(v_KTD, block)
                rows, grad_rows = _queries(q_KGTD, block), _queries(grad_KGTD, block)
                weights, slope = _weights(rows, keys, block, ctx.rules)
                num_keys = block.end - block.first
                found_v = torch.bmm(weights.transpose(1, 2), grad_rows)[:, :num_keys]
                grad_weights = torch.bmm(grad_rows, values.transpose(1, 2))
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_scores.mul_(ctx.rules.scale if slope is None else slope)
                _put_queries(grad_q_KGTD, block, torch.bmm(grad_scores, keys))
                found_k = torch.bmm(grad_scores.transpose(1, 2), rows)[:, :num_keys]
                if sums is None:
                    grad_k[:, begin:end], grad_v[:, begin:end] = found_k, found_v
                else:
                    at = slice(block.first - begin, block.end - begin)
                    sums[0][:, at] += found_k
                    sums[1][:, at] += found_v
            if sums is not None:
                grad_k[:, begin:end], grad_v[:, begin:end] = sums
        return grad_q, grad_k, grad_v, None, None


def _grouped(tensor_QTD: Tensor, num_groups: int) -> Tensor:
    """Return [Q, T, D] as a view [K, G, T, D]."""
    return tensor_QTD.unflatten(0, (num_groups, -1))


def _queries(tensor_KGTD: Tensor, block: Block) -> Tensor:
    """Return the queries of a block as [K, G M, D]: the heads of a group share their keys, so they are one product."""
    return _with_zeros(tensor_KGTD[:, :, block.start : block.end], block).flatten(1, 2)


def _put_queries(tensor_KGTD: Tensor, block: Block, found_KMD: Tensor) -> None:
    """Write what was found [K, G M, D] for the queries of a block."""
    found_KGMD = found_KMD.unflatten(1, (tensor_KGTD.shape[1], -1))
    tensor_KGTD[:, :, block.start : block.end] = found_KGMD[:, :, : block.end - block.start]


def _keys(tensor_KTD: Tensor, block: Block) -> Tensor:
    """Return the keys or values [K, N, D] of a block."""
    return _with_zeros(tensor_KTD[:, block.first : block.end], block)


def _with_zeros(rows: Tensor, block: Block) -> Tensor:
    return nn.functional.pad(rows, (0, 0, 0, block.num_zeros)) if block.num_zeros else rows


def _weights(rows: Tensor, keys: Tensor, block: Block, rules: AttentionRules) -> tuple[Tensor, Tensor | None]:
    """Return the attention weights [K, G M, N] and, where scores are capped, the scale times the cap's derivative."""
    bias = bias_of(block, rules.window, rows)
    groups = rows.shape[1] // bias.shape[0]
    bias = bias.repeat(groups, 1) if groups > 1 else bias
    if rules.softcap is None:
        shape = (keys.shape[0], *bias.shape)
        scores = torch.baddbmm(bias.expand(shape), rows, keys.transpose(1, 2), alpha=rules.scale)
        return torch._softmax(scores, -1, False), None
    capped = torch.bmm(rows, keys.transpose(1, 2)).mul_(rules.scale / rules.softcap).tanh_()
    weights = torch._softmax(capped.mul(rules.softcap).add_(bias), -1, False)
    return weights, capped.square_().neg_().add_(1).mul_(rules.scale)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_QTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, cu_seqlens: list[int], scale: float
    ) -> Tensor:
        num_heads, num_tokens, size = q_QTD.shape
        out_TQD = empty((num_tokens, num_heads, size), q_QTD)
        sums = []
        for begin, end in pairwise(cu_seqlens):
            q, k, v = _sample(q_QTD, k_KTD, v_KTD, begin, end)
            out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, True, scale=scale
            )
            out_TQD[begin:end] = out.flatten(0, 1).transpose(0, 1)
            sums.append(log_sum)
        ctx.save_for_backward(q_QTD, k_KTD, v_KTD, out_TQD, *sums)
        ctx.cu_seqlens, ctx.scale = cu_seqlens, scale
        return out_TQD

    @staticmethod
    def backward(ctx: Any, grad_TQD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_QTD, k_KTD, v_KTD, out_TQD, *sums = ctx.saved_tensors
        groups = q_QTD.shape[0] // k_KTD.shape[0]
        grad_q, grad_k, grad_v = empty_like(q_QTD), empty_like(k_KTD), empty_like(v_KTD)
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        for (begin, end), log_sum in zip(pairwise(ctx.cu_seqlens), sums, strict=True):
            q, k, v = _sample(q_QTD, k_KTD, v_KTD, begin, end)
            grad, out = (
                _grouped(tensor[begin:end].transpose(0, 1), k_KTD.shape[0]) for tensor in (grad_TQD, out_TQD)
            )
            found = backward(grad, q, k, v, out, log_sum, 0.0, True, scale=ctx.scale)
            grad_q[:, begin:end] = found[0].flatten(0, 1)
            for whole, part_KGLD in ((grad_k, found[1]), (grad_v, found[2])):
                whole[:, begin:end] = part_KGLD[:, 0] if groups == 1 else part_KGLD.sum(1)
        return grad_q, grad_k, grad_v, None, None


def _sample(q: Tensor, k: Tensor, v: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return one sample's tensors as views [K, G, L, D]: the heads of a group have the same keys and values."""
    q_KGLD = _grouped(q[:, begin:end], k.shape[0])
    k_KGLD, v_KGLD = (tensor[:, None, begin:end].expand(q_KGLD.shape) for tensor in (k, v))
    return q_KGLD, k_KGLD, v_KGLD


def flash_attention(
    q_QTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, cu_seqlens: list[int], scale: float
) -> Tensor:
    """Return the same by torch's operator, in whatever type: it keeps its output and a number a row, no scores."""
    out_TQD: Tensor = _FlashAttention.apply(q_QTD, k_KTD, v_KTD, cu_seqlens, scale)
    return out_TQD


def cpu_attention(
    q_QTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, cu_seqlens: list[int], rules: AttentionRules
) -> Tensor:
    """Return causal attention [T, Q, D] of samples that lie one after another, on a CPU."""
    longest = max(end - begin for begin, end in pairwise(cu_seqlens))
    if rules.window is not None and rules.window >= longest:
        rules = rules._replace(window=None)
    is_small = q_QTD.shape[0] * longest**2 * q_QTD.shape[2] < SMALL
    if (q_QTD.dtype == torch.float32 or is_small) and rules.window is None and rules.softcap is None:
        wide = (tensor.float() for tensor in (q_QTD, k_KTD, v_KTD))
        return flash_attention(*wide, cu_seqlens, rules.scale).to(q_QTD.dtype)
    return _BlockAttention.apply(q_QTD, k_KTD, v_KTD, cu_seqlens, rules)
