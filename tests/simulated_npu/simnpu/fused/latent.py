"""What latent attention does before its scores: projections of tokens down and up, norms, rotation and the caches.

Shapes: T tokens, N heads, D and Dr the plain and the rotated part of a head, Hq and Hk the latent sizes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from simnpu.fused.caches import write_slots
from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.norms import rms_norm
from simnpu.fused.quantisation import dynamic, integers, product
from simnpu.fused.rotary import interleave_rope

MODES = ("BNSD", "PA_BSND", "PA_NZ")


def projected(x: Tensor, weight: Tensor, x_scale: Tensor | None, weight_scale: Tensor | None) -> Tensor:
    """Rows times a matrix; integers by the scales of their rows and columns."""
    if weight_scale is None or x_scale is None:
        return x.float() @ weight.float()
    return (product(x, weight) * x_scale.double().view(-1, 1) * weight_scale.double().view(1, -1)).float()


def quantised(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else integers(values * scale.float().view(1, 1, -1), 1)


def prolog(
    token_x: Tensor, weight_dq: Tensor, weight_uq_qr: Tensor, weight_uk: Tensor, weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor, rmsnorm_gamma_ckv: Tensor, rope_sin: Tensor, rope_cos: Tensor,
    cache_index: Tensor | None, kv_cache: Tensor, kr_cache: Tensor, dequant_scale_x: Tensor | None,
    dequant_scale_w_dq: Tensor | None, dequant_scale_w_uq_qr: Tensor | None, dequant_scale_w_dkv_kr: Tensor | None,
    quant_scale_ckv: Tensor | None, quant_scale_ckr: Tensor | None, smooth_scales_cq: Tensor | None,
    rmsnorm_epsilon_cq: float, rmsnorm_epsilon_ckv: float, cache_mode: str, qc_qr_scale: float = 1.0,
    kc_scale: float = 1.0,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Fills both caches.

    Returns the query against the latent keys and its rotated part, the scale of the former where it is quantised,
    and the normed latent query with its scale where that is quantised.
    """
    check(cache_mode in MODES, f"cache_mode {cache_mode!r} is not one of {', '.join(MODES)}")
    if cache_index is None:
        raise NotSimulated("npu_mla_prolog: the simulator needs a cache_index")
    heads, size, latent = weight_uk.shape
    lead, rotated = token_x.shape[:-1], rope_sin.shape[-1]
    rows = token_x.reshape(-1, token_x.shape[-1])
    sin, cos = (x.float().reshape(-1, 1, rotated) for x in (rope_sin, rope_cos))
    normed = rms_norm(
        projected(rows, weight_dq, dequant_scale_x, dequant_scale_w_dq),
        rmsnorm_gamma_cq.float(),
        rmsnorm_epsilon_cq,
    )[0]
    norm_scale = torch.empty(0)
    if dequant_scale_w_uq_qr is not None:
        normed, norm_scale = dynamic(normed, None, smooth_scales_cq, (-1,))
        wide = projected(normed, weight_uq_qr, norm_scale, dequant_scale_w_uq_qr)
    else:
        wide = projected(normed, weight_uq_qr, None, None)
    plain, turned = (wide.view(-1, heads, size + rotated) * qc_qr_scale).split([size, rotated], -1)
    query = torch.einsum("tnd,ndh->tnh", plain, weight_uk.float())
    query_rope = interleave_rope(turned, cos, sin)
    below = projected(rows, weight_dkv_kr, dequant_scale_x, dequant_scale_w_dkv_kr)
    keys = rms_norm(below[:, :latent], rmsnorm_gamma_ckv.float(), rmsnorm_epsilon_ckv)[0] * kc_scale
    key_rope = interleave_rope(below[:, latent:].unsqueeze(1), cos, sin)
    is_nz, slots = cache_mode == "PA_NZ", cache_index.flatten()
    write_slots(kv_cache, quantised(keys.unsqueeze(1), quant_scale_ckv), slots, is_nz)
    write_slots(kr_cache, quantised(key_rope, quant_scale_ckr), slots, is_nz)
    kind, query_scale = weight_uk.dtype, torch.empty(0)
    if token_x.dtype == torch.int8 and quant_scale_ckv is not None:  # scores are made of integers then
        query, query_scale = dynamic(query, None, None, (-1,))
        query_rope = query_rope * quant_scale_ckv.float().flatten()[0] / query_scale
    else:
        query = query.to(kind)
    norm = normed if normed.dtype == torch.int8 else normed.to(kind)
    return (
        query.view(*lead, heads, latent), query_rope.to(kind).view(*lead, heads, rotated), query_scale,
        norm.view(*lead, -1), norm_scale,
    )  # fmt: skip


def signed(*more: str, without: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Gives a function that takes anything the arguments of `prolog`, without some and with some more."""
    taken = [p for name, p in inspect.signature(prolog).parameters.items() if name not in without]
    added = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in more]

    def sign(function: Callable) -> Callable:
        function.__signature__ = inspect.Signature(taken + added)  # type: ignore[attr-defined]
        return function

    return sign


@kernel("npu_mla_prolog")
@signed(without=("qc_qr_scale", "kc_scale"))
def mla_prolog(**given: Any) -> tuple[Tensor, ...]:
    """Query and its rotated part, and the caches, which are filled in place."""
    return mla_prolog_v2(**given)[:4]


@kernel("npu_mla_prolog_v2")
@signed(without=("qc_qr_scale", "kc_scale"))
def mla_prolog_v2(**given: Any) -> tuple[Tensor, ...]:
    """The same, and the scale of the query."""
    query, query_rope, query_scale, *_ = prolog(**given)
    return query, query_rope, given["kv_cache"], given["kr_cache"], query_scale


@kernel("npu_mla_prolog_v3")
@signed("query_norm_flag", "weight_quant_mode", "kv_cache_quant_mode", "query_quant_mode")
def mla_prolog_v3(**given: Any) -> tuple[Tensor, ...]:
    """Modes say again which scales are given: 0 none, 1 of the query's second matrix or of whole caches, 2 more."""
    wants_norm = given.pop("query_norm_flag")
    modes = {
        name: given.pop(name) for name in ("weight_quant_mode", "kv_cache_quant_mode", "query_quant_mode")
    }
    is_whole, is_cache = given["dequant_scale_w_dq"] is not None, given["quant_scale_ckv"] is not None
    is_part = given["dequant_scale_w_uq_qr"] is not None
    fits = (
        modes["weight_quant_mode"] == is_part + is_whole
        and modes["kv_cache_quant_mode"] in ((1, 2) if is_cache else (0,))
        and modes["query_quant_mode"] == (is_whole and is_cache)
    )
    if not fits:
        raise NotSimulated(
            f"npu_mla_prolog_v3: the simulator does not know {modes} with the scales that are given"
        )
    *found, norm, norm_scale = prolog(**given)
    empty = torch.empty(0)
    return *found, norm if wants_norm else empty, norm_scale if wants_norm else empty


@kernel("npu_mla_prolog_v3_functional")
@wraps(mla_prolog_v3)
def mla_prolog_v3_functional(**given: Any) -> tuple[Tensor, ...]:
    """The same, then copies of the caches that are filled."""
    caches = {name: given[name].clone() for name in ("kv_cache", "kr_cache")}
    return *mla_prolog_v3(**given | caches), *caches.values()
