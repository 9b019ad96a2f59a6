"""Rotary position embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel


def rotated(x: Tensor, mode: str) -> Tensor:
    """The quarter turn: of the two halves of the last dim ("half"), or of neighbours ("interleave")."""
    check(mode in ("half", "interleave"), f"npu_rotary_mul: rotary_mode {mode!r} must be half or interleave")
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


@kernel("npu_rotary_mul")
def rotary_mul(input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str, rotate: Tensor | None) -> Tensor:
    """r1 * input + r2 * rotated(input)."""
    check(input.dim() == r1.dim() == r2.dim() == 4, "npu_rotary_mul: input, r1 and r2 must be 4-D")
    size = input.shape[-1]
    check(size % 2 == 0 and size < 896, f"npu_rotary_mul: the last dim {size} must be even and below 896")
    turned = rotated(input, rotary_mode) if rotate is None else input @ rotate
    return (r1 * input + r2 * turned).to(input.dtype)


@kernel("npu_rotary_mul_backward")
def rotary_mul_backward(
    grad: Tensor, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(lambda x, a, b: rotary_mul(x, a, b, rotary_mode, None), (input, r1, r2), [grad])


@kernel("npu_apply_rotary_pos_emb")
def apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str, rotary_mode: str
) -> tuple[Tensor, Tensor]:
    """Both at once; changes query and key in place, as the device does."""
    check(
        layout in ("BSND", "BSH", "TND", "1"), f"npu_apply_rotary_pos_emb: layout {layout!r} is not supported"
    )
    for x in (query, key):
        x.copy_((cos * x + sin * rotated(x, rotary_mode)).to(x.dtype))
    return query, key


@kernel("npu_interleave_rope")
def interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Brings the even elements before the odd ones, then turns the halves."""
    halves = torch.cat((x[..., ::2], x[..., 1::2]), -1)
    return (cos * halves + sin * rotated(halves, "half")).to(x.dtype)


def section_angles(angles: Tensor, section: list[int], cache_mode: str) -> Tensor:
    """[T, D / 2] of [3, T, D / 2]: time, height and width in their sections, or taking turns."""
    if cache_mode == "default":
        return torch.cat([part[i] for i, part in enumerate(angles.split(list(section), -1))], -1)
    mixed = angles[0].clone()
    for axis in (1, 2):
        mixed[:, axis : section[axis] * 3 : 3] = angles[axis, :, axis : section[axis] * 3 : 3]
    return mixed


@kernel("npu_mrope")
def mrope(
    positions: Tensor, query: Tensor, key: Tensor, cos_sin_cache: Tensor, head_size: int,
    mrope_section: list[int] | None, rotary_mode: str | None, cache_mode: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rotates query and key [T, N * D] by the angles of their positions: [T], or [3, T] in sections of the angles."""
    check(
        cache_mode in ("default", "interleave"),
        f"cache_mode only support default or interleave, got {cache_mode!r}",
    )
    width = cos_sin_cache.shape[-1]
    cos, sin = cos_sin_cache.float()[positions.long()].chunk(2, -1)
    if positions.dim() == 2:
        cos, sin = (section_angles(x, mrope_section, cache_mode) for x in (cos, sin))
    twice = torch.cat if rotary_mode == "half" else lambda pair, dim: torch.stack(pair, dim).flatten(-2)
    cos, sin = (twice((x, x), -1)[:, None] for x in (cos, sin))

    def turn(x: Tensor) -> Tensor:
        heads = x.float().unflatten(-1, (-1, head_size))
        part = heads[..., :width]
        turned = cos * part + sin * rotated(part, rotary_mode)
        return torch.cat((turned, heads[..., width:]), -1).flatten(1).to(x.dtype)

    return turn(query), turn(key)
