"""Microscaled types (mx): blocks of small floats along an axis, each with a power of two as its scale.

A scale is one byte, its exponent plus 127; they come in pairs, so that a block may have an empty neighbour. Two values
of four bits share a byte, the first in the lower half.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.formats import TYPES
from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.norms import rms_norm

BIAS, NOT_FINITE = 127, 255
E8M0 = (293, 44)  # torch_npu's number of the type of scales, and torch's


class Small(NamedTuple):
    """A small float: bits of its mantissa, the largest exponent and the smallest normal one, the largest value."""

    mantissa: int
    exponent: int
    lowest: int
    largest: float


FOUR_BITS = {296: Small(1, 2, 0, 6.0), 45: Small(1, 2, 0, 6.0), 297: Small(2, 0, 0, 1.75)}
EIGHT_BITS = {torch.float8_e5m2: Small(2, 15, -14, 57344.0), torch.float8_e4m3fn: Small(3, 8, -6, 448.0)}
ROUNDING = {
    "rint": torch.round,
    "floor": torch.floor,
    "round": lambda x: x.sign() * (x.abs() + 0.5).floor(),
}


def small(number: int) -> Small:
    kind = FOUR_BITS.get(number) or EIGHT_BITS.get(TYPES.get(number))
    if kind is None:
        raise NotSimulated(f"the simulator has no microscaled type number {number}")
    return kind


def exponent_of(values: Tensor) -> Tensor:
    """floor(log2(values)); of zero, far below every type."""
    return torch.where(values == 0, -10000, torch.frexp(values).exponent - 1)


def grid(kind: Small) -> Tensor:
    """The values of four bits that are not negative, in the order of their bits."""
    return (
        torch.arange(8) / 2**kind.mantissa
        if kind.exponent == 0
        else torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    )


def encoded(values: Tensor, number: int, round_mode: str) -> Tensor:
    """Values within the type's range in its bits; beyond it they are its largest."""
    kind = small(number)
    check(round_mode in ROUNDING, f"round_mode {round_mode!r} is not one of {', '.join(ROUNDING)}")
    kept = values.clamp(-kind.largest, kind.largest)
    if number not in FOUR_BITS:
        check(round_mode == "rint", f"round_mode {round_mode!r} is not for types of eight bits, only rint is")
        return kept.to(TYPES[number])
    check(values.shape[-1] % 2 == 0, f"four bits need an even last dim, got {tuple(values.shape)}")
    step = torch.exp2((exponent_of(kept.abs()).clamp_min(kind.lowest) - kind.mantissa).float())
    rounded = (ROUNDING[round_mode](kept / step) * step).clamp(-kind.largest, kind.largest)
    bits = torch.searchsorted(grid(kind), rounded.abs().contiguous()) | (rounded < 0).long() << 3
    return (bits[..., ::2] | bits[..., 1::2] << 4).to(torch.uint8)


def decoded(bits: Tensor, number: int | None, axis: int = -1) -> Tensor:
    """Floats of a tensor's bits; halves of bytes lie along this axis."""
    if number not in FOUR_BITS:
        return bits.float()
    table = torch.cat([grid(small(number)), -grid(small(number))])
    halves = bits.view(torch.uint8).movedim(axis, -1)
    values = table[torch.stack([halves & 15, halves >> 4], -1).long()]
    return values.flatten(-2).movedim(-1, axis)


def scale_exponent(largest: Tensor, kind: Small, algorithm: int | None) -> Tensor:
    """0: the block's exponent over the type's; 1: what keeps the largest within the type, rounded up."""
    if algorithm in (None, 0):
        return exponent_of(largest) - kind.exponent
    if algorithm != 1:
        raise NotSimulated(f"the simulator has no scale_alg {algorithm}")
    wanted = largest / kind.largest
    exponent = exponent_of(wanted)
    return exponent + (wanted > torch.exp2(exponent.float())).int()


def microscaled(
    x: Tensor, axis: int, number: int, *, mode: str = "rint", algorithm: int | None = 0, block: int = 32
) -> tuple[Tensor, Tensor]:
    """The bits of x, and its scales [..., pairs of blocks at this axis, ..., 2]."""
    axis, size = axis % x.dim(), x.shape[axis]
    rows = F.pad(x.float().movedim(axis, -1), (0, -size % (2 * block))).unflatten(-1, (-1, 2, block))
    largest = rows.abs().amax(-1)
    exponent = scale_exponent(largest, small(number), algorithm).clamp(-BIAS, BIAS)
    scaled = (rows.double() / torch.exp2(exponent.double())[..., None]).float()
    values = scaled.flatten(-3)[..., :size].movedim(-1, axis)
    scales = torch.where(largest.isfinite(), exponent + BIAS, NOT_FINITE).to(torch.uint8)
    return encoded(values.contiguous(), number, mode), scales.movedim(-2, axis)


def plain(values: Tensor, scales: Tensor, axis: int, block: int = 32) -> Tensor:
    """Floats times the scales of their blocks along this axis."""
    axis = axis % values.dim()
    powers = torch.exp2(scales.view(torch.uint8).double() - BIAS).movedim(axis, -2).flatten(-2)
    powers = powers.repeat_interleave(block, -1)[..., : values.shape[axis]]
    return (values.double().movedim(axis, -1) * powers).movedim(-1, axis).float()


def is_microscaled(scale: Tensor, number: int | None) -> bool:
    return number in E8M0 or scale.dtype == torch.float8_e8m0fnu


@kernel("npu_dynamic_mx_quant")
def dynamic_mx_quant(
    input: Tensor, axis: int, round_mode: str, dst_type: int, block_size: int, scale_alg: int | None
) -> tuple[Tensor, Tensor]:
    check(
        0 < block_size <= 1024 and block_size % 32 == 0,
        f"block_size is a multiple of 32 up to 1024, got {block_size}",
    )
    return microscaled(input, axis, dst_type, mode=round_mode, algorithm=scale_alg, block=block_size)


@kernel("npu_dynamic_mx_quant_with_dual_axis")
def dynamic_mx_quant_with_dual_axis(
    input: Tensor, round_mode: str, dst_type: int, scale_alg: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along the last axis, and along the one before it."""
    return (
        *microscaled(input, -1, dst_type, mode=round_mode, algorithm=scale_alg),
        *microscaled(input, -2, dst_type, mode=round_mode, algorithm=scale_alg),
    )


@kernel("npu_grouped_dynamic_mx_quant")
def grouped_dynamic_mx_quant(
    x: Tensor, group_index: Tensor, round_mode: str, dst_type: int, blocksize: int, scale_alg: int | None
) -> tuple[Tensor, Tensor]:
    """Along the rows of each group, to its end in `group_index`; scales begin at start / 64 + the group's number."""
    pair, ends = 2 * blocksize, group_index.tolist()
    scales = torch.zeros(x.shape[0] // pair + len(ends), x.shape[1], 2, dtype=torch.uint8)
    parts, start = [], 0
    for i, end in enumerate(ends):
        bits, found = microscaled(
            x[start:end], 0, dst_type, mode=round_mode, algorithm=scale_alg, block=blocksize
        )
        parts.append(bits)
        scales[start // pair + i :][: found.shape[0]] = found
        start = end
    return torch.cat(parts), scales


@kernel("npu_anti_mx_quant")
def anti_mx_quant(
    x: Tensor, mxscale: Tensor, axis: int | None, dst_type: int | None, src_type: int | None
) -> Tensor:
    values = decoded(x, None if x.dtype in EIGHT_BITS else src_type)
    return plain(values, mxscale, -1 if axis is None else axis).to(TYPES[dst_type])


@kernel("npu_rms_norm_dynamic_mx_quant")
def rms_norm_dynamic_mx_quant(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    epsilon: float,
    scale_alg: int,
    round_mode: str,
    dst_type: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bits and scales of the norm, and rstd."""
    y, rstd = rms_norm(x.float(), gamma.float(), epsilon)
    y = y if beta is None else y + beta.float()
    return *microscaled(y.to(x.dtype), -1, dst_type, mode=round_mode, algorithm=scale_alg), rstd


@kernel("npu_add_rms_norm_dynamic_mx_quant")
def add_rms_norm_dynamic_mx_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float, scale_alg: int, round_mode: str,
    dst_type: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    total = x1 + x2
    y, scales, rstd = rms_norm_dynamic_mx_quant(total, gamma, beta, epsilon, scale_alg, round_mode, dst_type)
    return y, total, scales, rstd


@kernel("npu_swiglu_mx_quant")
def swiglu_mx_quant(
    x: Tensor,
    activate_dim: int,
    activate_left: bool,
    axis: int,
    dst_type: int,
    round_mode: str,
    scale_alg: int,
) -> tuple[Tensor, Tensor]:
    left, right = x.float().chunk(2, activate_dim)
    y = F.silu(left) * right if activate_left else left * F.silu(right)
    return microscaled(y.to(x.dtype), axis, dst_type, mode=round_mode, algorithm=scale_alg)
