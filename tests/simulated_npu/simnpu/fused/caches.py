"""Caches of keys and values: writing rows into them by slots or places, and reading them back.

A plain cache is [blocks, size, N, D]. In the NZ layout it is [blocks, N * D / C, size, C] with C elements of 32 bytes.
A slot is block * size + place in the block; rows with a slot below zero are left out.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor

from simnpu.fused.indexing import scatter_update_
from simnpu.fused.kernels import check, kernel
from simnpu.fused.norms import rms_norm
from simnpu.fused.quantisation import integers, quantize
from simnpu.fused.rotary import interleave_rope

CACHE_MODES = ("Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ")


def write_slots(cache: Tensor, rows: Tensor, slots: Tensor, is_nz: bool) -> None:
    """Writes rows [T, N, D] into a cache; in the NZ layout whatever shape names its bytes."""
    kept = slots >= 0
    rows, slots = rows[kept].to(cache.dtype), slots[kept].long()
    if not is_nz:
        cache.view(-1, *rows.shape[1:])[slots] = rows
        return
    width = 32 // cache.element_size()
    chunks = rows.flatten(1).unflatten(1, (-1, width))  # [T, N * D / C, C]
    blocks = cache.view(cache.shape[0], chunks.shape[1], -1, width)
    size = blocks.shape[2]
    blocks[slots // size, :, slots % size] = chunks


def slots_of_blocks(index: Tensor, samples: int, length: int, size: int) -> Tensor:
    """The slot of each row, where the index has one for each block that a sample fills."""
    places = torch.arange(length)
    firsts = index.view(samples, -1)[:, places // size]
    return torch.where(firsts < 0, -1, firsts // size * size + places % size).flatten()


def scaled(values: Tensor, scale: Tensor | None, offset: Tensor | None, cache: Tensor) -> Tensor:
    """As the cache keeps them: integers where there is a scale."""
    if scale is None:
        return values.to(cache.dtype)
    values = values.float() * scale.float()
    return integers(values if offset is None else values + offset.float(), 1)


@kernel("npu_kv_rmsnorm_rope_cache")
def kv_rmsnorm_rope_cache(
    kv: Tensor, gamma: Tensor, cos: Tensor, sin: Tensor, index: Tensor, k_cache: Tensor, ckv_cache: Tensor,
    k_rope_scale: Tensor | None, c_kv_scale: Tensor | None, k_rope_offset: Tensor | None, c_kv_offset: Tensor | None,
    epsilon: float, cache_mode: str, is_output_kv: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Norms the first part of kv [B, N, S, Dv + Dk], rotates the rest; fills both caches in place.

    Returns the caches, and the rotated and the normed part before they are quantised.
    """
    check(cache_mode in CACHE_MODES, f"cache_mode {cache_mode!r} is not one of {', '.join(CACHE_MODES)}")
    for name, tensor, dims in (("kv", kv, 4), ("gamma", gamma, 1), ("cos", cos, 4)):
        check(tensor.dim() == dims, f"{dims}D tensor expected for input {name}")
    first, second = kv.float().split([gamma.shape[0], kv.shape[-1] - gamma.shape[0]], -1)
    normed = rms_norm(first, gamma, epsilon)[0]
    rotated = interleave_rope(second, cos.float(), sin.float())
    samples, heads, length, _ = kv.shape
    for cache, values, scale, offset in (
        (k_cache, rotated, k_rope_scale, k_rope_offset),
        (ckv_cache, normed, c_kv_scale, c_kv_offset),
    ):
        values = scaled(values, scale, offset, cache)
        if cache_mode == "Norm":
            for sample, places in enumerate(index.view(samples, length).long()):
                cache[sample, :, places] = values[sample]
            continue
        size = cache.shape[1]
        slots = slots_of_blocks(index, samples, length, size) if "BLK" in cache_mode else index.flatten()
        write_slots(
            cache, values.transpose(1, 2).reshape(-1, heads, values.shape[-1]), slots, "NZ" in cache_mode
        )
    return k_cache, ckv_cache, rotated.to(kv.dtype), normed.to(kv.dtype)


@kernel("npu_kv_rmsnorm_rope_cache_v2")
@wraps(kv_rmsnorm_rope_cache)
def kv_rmsnorm_rope_cache_v2(**given: Any) -> tuple[Tensor, Tensor]:
    return kv_rmsnorm_rope_cache(**given)[2:]


@kernel("npu_kv_rmsnorm_rope_cache_v2_functional")
@wraps(kv_rmsnorm_rope_cache)
def kv_rmsnorm_rope_cache_v2_functional(**given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rotated and the normed part, then copies of the caches that are filled."""
    caches = {name: given[name].clone() for name in ("k_cache", "ckv_cache")}
    return *kv_rmsnorm_rope_cache_v2(**given | caches), *caches.values()


@kernel("npu_scatter_pa_kv_cache")
def scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    cache_mode: str | None,
) -> None:
    """Rows [T, N, D] go to their slots."""
    check(cache_mode in ("Norm", "PA_NZ"), f"cache_mode {cache_mode!r} is not one of Norm, PA_NZ")
    for rows, cache in ((key, key_cache), (value, value_cache)):
        write_slots(cache, rows, slot_mapping, cache_mode == "PA_NZ")


@kernel("npu_scatter_pa_kv_cache_functional")
@wraps(scatter_pa_kv_cache)
def scatter_pa_kv_cache_functional(**given: Any) -> tuple[Tensor, Tensor]:
    caches = {name: given[name].clone() for name in ("key_cache", "value_cache")}
    scatter_pa_kv_cache(**given | caches)
    return tuple(caches.values())


def gathered(cache: Tensor, table: Tensor, lengths: list[int], offsets: list[int], out: Tensor) -> Tensor:
    """Rows like `out` [T, N, D]: of each sample so many, from a block on; zeros where the table has no block."""
    if cache.shape[2:] != out.shape[1:]:  # NZ
        cache = cache.transpose(1, 2).reshape(cache.shape[0], cache.shape[2], *out.shape[1:])
    size, parts = cache.shape[1], []
    for sample, (length, offset) in enumerate(zip(lengths, offsets, strict=True)):
        places = torch.arange(length)
        columns = offset // size + places // size
        blocks = table[sample].long()[columns.clamp_max(table.shape[1] - 1)]
        known = (columns < table.shape[1]) & (blocks >= 0) & (blocks < cache.shape[0])
        parts.append(cache[blocks.clamp(0, cache.shape[0] - 1), places % size] * known[:, None, None])
    return torch.cat(parts)


@kernel("npu_gather_pa_kv_cache")
def gather_pa_kv_cache(
    key_cache: Tensor, value_cache: Tensor, block_tables: Tensor, seq_lens: Tensor, key: Tensor, value: Tensor,
    seq_offset: Tensor | None, is_seq_lens_cumsum: bool,
) -> None:  # fmt: skip
    """Fills key and value; with sums the lengths begin with zero."""
    lengths = (seq_lens.diff() if is_seq_lens_cumsum else seq_lens).tolist()
    offsets = [0] * len(lengths) if seq_offset is None else seq_offset.tolist()
    for cache, out in ((key_cache, key), (value_cache, value)):
        rows = gathered(cache, block_tables, lengths, offsets, out)[: out.shape[0]]
        out[: rows.shape[0]] = rows


@kernel("npu_gather_pa_kv_cache_functional")
def gather_pa_kv_cache_functional(
    key_cache: Tensor, value_cache: Tensor, block_tables: Tensor, seq_lens: Tensor, key: Tensor, value: Tensor,
    seq_offset: Tensor | None, is_seq_lens_cumsum: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = key.clone(), value.clone()
    gather_pa_kv_cache(key_cache, value_cache, block_tables, seq_lens, *out, seq_offset, is_seq_lens_cumsum)
    return out


@kernel("npu_scatter_list_")
def scatter_list_(
    input: list[Tensor], indices: Tensor, updates: Tensor, mask: Tensor | None, axis: int
) -> None:
    """Item i of updates goes into tensor i, from place indices[i] of the axis on, or to (place, length)."""
    for number, (target, source) in enumerate(zip(input, updates, strict=True)):
        if mask is not None and not mask[number]:
            continue
        place = indices[number].reshape(-1).tolist()
        length = place[1] if len(place) > 1 else source.shape[axis]
        target.narrow(axis, place[0], length).copy_(source.narrow(axis, 0, length))


@kernel("npu_scatter_list")
def scatter_list(
    input: list[Tensor], indices: Tensor, updates: Tensor, mask: Tensor | None, axis: int
) -> list[Tensor]:
    copies = [tensor.clone() for tensor in input]
    scatter_list_(copies, indices, updates, mask, axis)
    return copies


@kernel("npu_quant_scatter_")
def quant_scatter_(
    input: Tensor, indices: Tensor, updates: Tensor, quant_scales: Tensor, quant_zero_points: Tensor | None, axis: int,
    quant_axis: int,
) -> Tensor:  # fmt: skip
    """Quantises the updates as npu_quantize does, then scatters them."""
    zeros = None if quant_zero_points is None else quant_zero_points.flatten()
    values = quantize(updates, quant_scales.flatten(), zeros, 12, quant_axis, True)
    return scatter_update_(input, indices, values, axis)


@kernel("npu_quant_scatter")
def quant_scatter(
    input: Tensor, indices: Tensor, updates: Tensor, quant_scales: Tensor, quant_zero_points: Tensor | None, axis: int,
    quant_axis: int,
) -> Tensor:  # fmt: skip
    return quant_scatter_(input.clone(), indices, updates, quant_scales, quant_zero_points, axis, quant_axis)
