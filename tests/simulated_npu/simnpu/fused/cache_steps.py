"""Queries, keys and values of one product: split, normed, turned, and the last two quantised into caches."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor

from simnpu.fused.caches import scaled, write_slots
from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.norms import rms_norm
from simnpu.fused.quantisation import dequant_bias, integers
from simnpu.fused.rotary import rotated


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + rotated(x, "half") * sin


def kept(values: Tensor, scale: Tensor | None, offset: Tensor | None, kind: torch.dtype) -> Tensor:
    """Integers where there is a scale, by which these operators divide."""
    if scale is None:
        return values.to(kind)
    values = values / scale.float()
    return integers(values if offset is None else values + offset.float(), 1)


@kernel("npu_qkv_rms_norm_rope_cache")
def qkv_rms_norm_rope_cache(
    qkv: Tensor, q_gamma: Tensor, k_gamma: Tensor, cos: Tensor, sin: Tensor, index: Tensor, q_out: Tensor,
    k_cache: Tensor, v_cache: Tensor, qkv_size: list[int], head_nums: list[int], k_scale: Tensor | None,
    v_scale: Tensor | None, k_offset: Tensor | None, v_offset: Tensor | None, epsilon: float, cache_mode: str,
    is_output_qkv: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Fills q_out [B * S, Nq * D] and both caches; returns all three before they are quantised where asked for."""
    check(len(qkv_size) == 4, "npu_qkv_rms_norm_rope_cache: the size of qkv_size must be 4.")
    check(len(head_nums) == 3, "npu_qkv_rms_norm_rope_cache: the size of head_nums must be 3.")
    if cache_mode != "PA_NZ":
        raise NotSimulated(f"npu_qkv_rms_norm_rope_cache: the simulator has no cache_mode {cache_mode!r}")
    rows, dim = qkv.shape[0], qkv_size[3]
    q, k, v = qkv.float().view(rows, -1, dim).split(list(head_nums), 1)
    angles = [x.float().view(rows, -1, dim) for x in (cos, sin)]
    q, k = (
        turned(rms_norm(x, gamma.float(), epsilon)[0], *angles) for x, gamma in ((q, q_gamma), (k, k_gamma))
    )
    q_out.copy_(q.flatten(1))
    for cache, values, scale, offset in ((k_cache, k, k_scale, k_offset), (v_cache, v, v_scale, v_offset)):
        write_slots(cache, kept(values, scale, offset, cache.dtype), index.flatten(), is_nz=True)
    if is_output_qkv:
        return tuple(x.flatten(1).to(qkv.dtype) for x in (q, k, v))
    return tuple(torch.empty(0, dtype=qkv.dtype) for _ in range(3))


@kernel("npu_qkv_rms_norm_rope_cache_functional")
@wraps(qkv_rms_norm_rope_cache)
def qkv_rms_norm_rope_cache_functional(**given: Any) -> tuple[Tensor, ...]:
    """The same with copies of q_out and the caches, which come last."""
    copies = {name: given[name].clone() for name in ("q_out", "k_cache", "v_cache")}
    return *qkv_rms_norm_rope_cache(**given | copies), *copies.values()


@kernel("npu_rope_quant_kvcache")
def rope_quant_kvcache(
    x: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, indices: Tensor, scale_k: Tensor,
    scale_v: Tensor, size_splits: list[int], offset_k: Tensor | None, offset_v: Tensor | None, quant_mode: int,
    input_layout: str, kv_output: bool, cache_mode: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Turned queries, keys and values where asked for, and the caches [B or blocks, S, N, D].

    A contiguous cache takes each sample's rows from its index on, a paged one has an index for each row.
    """
    check(x.dim() in (2, 3), "3D or 2D tensor expected for input x")
    check(k_cache.dim() == v_cache.dim() == 4, "4D tensor expected for input cache")
    if quant_mode != 0 or input_layout != "BSND":
        raise NotSimulated(
            f"npu_rope_quant_kvcache: quant_mode {quant_mode}, layout {input_layout!r} are not simulated"
        )
    check(cache_mode in ("contiguous", "page"), f"cache_mode {cache_mode!r} is not one of contiguous, page")
    lead, dim = x.shape[:-1], k_cache.shape[3]
    q, k, v = (part.unflatten(-1, (-1, dim)) for part in x.float().split(list(size_splits), -1))
    angles = [value.float().view(*lead, -1, dim) for value in (cos, sin)]
    q, k = turned(q, *angles), turned(k, *angles)
    for cache, values, scale, offset in ((k_cache, k, scale_k, offset_k), (v_cache, v, scale_v, offset_v)):
        values = scaled(values, scale, offset, cache)
        if cache_mode == "page":
            rows = values.flatten(0, -3)
            cache.view(-1, *cache.shape[2:])[indices.flatten().long()] = rows
            continue
        for sample, first in enumerate(indices.tolist()):
            rows = values[sample].view(-1, *cache.shape[2:])
            cache[sample, first : first + len(rows)] = rows
    outputs = (q, k, v) if kv_output else (q, torch.empty(0), torch.empty(0))
    return *(value.to(cos.dtype) for value in outputs), k_cache, v_cache


@kernel("npu_dequant_rope_quant_kvcache")
def dequant_rope_quant_kvcache(
    x: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, indices: Tensor, scale_k: Tensor,
    scale_v: Tensor, size_splits: list[int], offset_k: Tensor | None, offset_v: Tensor | None,
    weight_scale: Tensor | None, activation_scale: Tensor | None, bias: Tensor | None, quant_mode: int,
    input_layout: str, kv_output: bool, cache_mode: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The same of the sums of a product of integers."""
    if x.dtype == torch.int32:
        check(weight_scale is not None, "weight_scale is needed where x is int32")
        x = dequant_bias(
            x.flatten(0, -2), weight_scale, activation_scale, bias, torch.float32
        ).view(x.shape)  # fmt: skip
    return rope_quant_kvcache(
        x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, size_splits, offset_k, offset_v, quant_mode,
        input_layout, kv_output, cache_mode,
    )  # fmt: skip
