"""Blocks of rows and columns that share a scale: a float, a power of two, or one of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.formats import TYPES
from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.microscaling import (
    BIAS,
    NOT_FINITE,
    decoded,
    encoded,
    grouped_dynamic_mx_quant,
    microscaled,
    plain,
    scale_exponent,
    small,
)
from simnpu.fused.quantisation import integers, largest
from simnpu.fused.quantised_layers import gated

FOUR_BITS, TOP_OF_FOUR_BITS = 296, 6.0  # float4_e2m1fn_x2
OUTER, INNER = 512, 32  # sizes of the blocks of two levels


def amax_of_blocks(x: Tensor, rows: int, columns: int) -> Tensor:
    """[..., row blocks, column blocks] of the last two dims; what a block lacks is zero."""
    padded = F.pad(x.float().abs(), (0, -x.shape[-1] % columns, 0, -x.shape[-2] % rows))
    return padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows)).amax((-3, -1))


def spread(scales: Tensor, rows: int, columns: int, like: Tensor) -> Tensor:
    """What each element has of its block's."""
    wide = scales.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return wide[..., : like.shape[-2], : like.shape[-1]]


@kernel("npu_dynamic_block_quant")
def dynamic_block_quant(
    x: Tensor, min_scale: float, round_mode: str, dst_type: int, row_block_size: int, col_block_size: int,
    dst_type_max: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A block of zeros has zeros, and the scale 0 unless a least one is asked for."""
    if round_mode != "rint":
        raise NotSimulated(f"npu_dynamic_block_quant: the simulator has no round_mode {round_mode!r}")
    check(x.dim() in (2, 3), f"npu_dynamic_block_quant: x has 2 or 3 dims, got {tuple(x.shape)}")
    scale = amax_of_blocks(x, row_block_size, col_block_size) / (dst_type_max or largest(dst_type))
    scale = scale.clamp_min(min_scale)
    divisor = spread(torch.where(scale == 0, 1.0, scale), row_block_size, col_block_size, x)
    return integers(x.float() / divisor, dst_type), scale


@kernel("npu_grouped_dynamic_block_quant")
def grouped_dynamic_block_quant(
    x: Tensor, group_list: Tensor, min_scale: float, round_mode: str, dst_type: int, row_block_size: int,
    col_block_size: int, group_list_type: int, dst_type_max: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """No block crosses a group's end in `group_list`; a group's scales begin at start / rows + its number."""
    if group_list_type != 0:
        raise NotSimulated(
            f"npu_grouped_dynamic_block_quant: the simulator has no group_list_type {group_list_type}"
        )
    ends = group_list.tolist()
    scales = torch.zeros(
        *x.shape[:-2], x.shape[-2] // row_block_size + len(ends), -(-x.shape[-1] // col_block_size)
    )
    parts, start = [], 0
    for i, end in enumerate(ends):
        values, found = dynamic_block_quant(
            x[..., start:end, :], min_scale, round_mode, dst_type, row_block_size, col_block_size, dst_type_max
        )  # fmt: skip
        parts.append(values)
        first = start // row_block_size + i
        scales[..., first : first + found.shape[-2], :] = found
        start = end
    return torch.cat(parts, -2), scales


@kernel("npu_dynamic_block_mx_quant")
def dynamic_block_mx_quant(
    input: Tensor, round_mode: str, dst_type: int, scale_alg: int, dst_type_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Squares of 32 share a power of two, told once along the last axis and once along the one before it.

    Algorithm 2 takes the type's largest value from `dst_type_max`.
    """
    check(input.dim() >= 2, f"npu_dynamic_block_mx_quant: input has 2 or 3 dims, got {tuple(input.shape)}")
    kind = small(dst_type)
    if scale_alg == 2:
        kind, scale_alg = kind._replace(largest=dst_type_max or kind.largest), 1
    top = amax_of_blocks(input, INNER, INNER)
    exponent = scale_exponent(top, kind, scale_alg).clamp(-BIAS, BIAS)
    power = spread(torch.exp2(exponent.double()), INNER, INNER, input)
    values = encoded((input.double() / power).float(), dst_type, round_mode)
    bits = torch.where(top.isfinite(), exponent + BIAS, NOT_FINITE).to(torch.uint8)
    *_, rows, columns = input.shape
    of_rows = bits.repeat_interleave(INNER, -2)[..., :rows, :]
    of_columns = bits.repeat_interleave(INNER, -1)[..., :columns]
    of_rows = F.pad(of_rows, (0, of_rows.shape[-1] % 2)).unflatten(-1, (-1, 2))
    of_columns = F.pad(of_columns, (0, 0, 0, of_columns.shape[-2] % 2)).unflatten(-2, (-1, 2))
    return values, of_rows, of_columns.transpose(-1, -2)


@kernel("npu_dynamic_dual_level_mx_quant")
def dynamic_dual_level_mx_quant(
    input: Tensor, smooth_scale: Tensor | None, round_mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of 512 by a float, what comes of it in blocks of 32 by a power of two."""
    x = input if smooth_scale is None else input * smooth_scale
    rows = F.pad(x.float(), (0, -x.shape[-1] % OUTER)).unflatten(-1, (-1, OUTER))
    outer = rows.abs().amax(-1) / TOP_OF_FOUR_BITS
    divided = rows / torch.where(outer == 0, 1.0, outer)[..., None]
    divided = divided.flatten(-2)[..., : x.shape[-1]].to(input.dtype)
    values, inner = microscaled(divided, -1, FOUR_BITS, mode=round_mode)
    return values, outer, inner


@kernel("npu_dual_level_quant_matmul")
def dual_level_quant_matmul(
    x1: Tensor, x2: Tensor, x1_level0_scale: Tensor, x2_level0_scale: Tensor, x1_level1_scale: Tensor,
    x2_level1_scale: Tensor, bias: Tensor | None, output_dtype: int,
) -> Tensor:  # fmt: skip
    """x1 [M, K] and x2 [N, K] of four bits; the float scales of x2 lie along its rows' blocks, [K / 512, N]."""

    def floats(bits: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        values = plain(decoded(bits, FOUR_BITS), inner, -1)
        return values * outer.repeat_interleave(OUTER, -1)[..., : values.shape[-1]]

    left = floats(x1, x1_level1_scale, x1_level0_scale)
    total = left @ floats(x2, x2_level1_scale, x2_level0_scale.t()).t()
    return (total if bias is None else total + bias.float()).to(TYPES[output_dtype])


@kernel("npu_swiglu_mx_quant_with_dual_axis")
def swiglu_mx_quant_with_dual_axis(
    x: Tensor, group_index: Tensor | None, activate_left: bool, round_mode: str, scale_alg: int, dst_type: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along the last axis, and along the rows, where no block crosses a group's end."""
    y = gated(x, activate_left).to(x.dtype)
    first = microscaled(y, -1, dst_type, mode=round_mode, algorithm=scale_alg)
    if group_index is not None:
        return *first, *grouped_dynamic_mx_quant(y, group_index, round_mode, dst_type, INNER, scale_alg)
    return *first, *microscaled(y, -2, dst_type, mode=round_mode, algorithm=scale_alg)
