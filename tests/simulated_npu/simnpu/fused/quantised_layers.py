"""Norms and gated units whose results are quantised, or whose inputs were."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import check, kernel
from simnpu.fused.norms import rms_norm
from simnpu.fused.quantisation import dynamic, integers, per_row, quantised_product, quantize


def gated(x: Tensor, activate_left: bool) -> Tensor:
    left, right = x.float().chunk(2, -1)
    return F.silu(left) * right if activate_left else left * F.silu(right)


def requantised(y: Tensor, scale: Tensor | None, offset: Tensor | None, mode: int) -> tuple[Tensor, Tensor]:
    """Mode 0 with the given scale and offset, mode 1 with a scale for each row."""
    if mode == 1:
        values, found = dynamic(y, None, scale, (-1,))
        return values, found.squeeze(-1)
    y = y if scale is None else y * scale.float()
    return integers(y if offset is None else y + offset.float(), 1), torch.zeros(y.shape[:-1])


@kernel("npu_swiglu_quant")
def swiglu_quant(
    x: Tensor, smooth_scales: Tensor | None, offsets: Tensor | None, group_index: Tensor | None, activate_left: bool,
    quant_mode: int, group_list_type: int, dst_type: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check(dst_type in (None, torch.int8, 1), f"npu_swiglu_quant: the simulator makes int8, not {dst_type}")
    ends = group_list_type == 0
    scale, offset = (
        None if v is None else per_row(x, group_index, v, ends) for v in (smooth_scales, offsets)
    )
    values, found = requantised(gated(x, activate_left), scale, offset, quant_mode)
    return values, 1 / found if quant_mode == 1 else found  # this operator tells what it multiplied by


@kernel("npu_dequant_swiglu_quant")
def dequant_swiglu_quant(
    x: Tensor, weight_scale: Tensor | None, activation_scale: Tensor | None, bias: Tensor | None,
    quant_scale: Tensor | None, quant_offset: Tensor | None, group_index: Tensor | None, activate_left: bool,
    quant_mode: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    def of_rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else per_row(x, group_index, values)

    whole = x.float() if bias is None else x.float() + of_rows(bias).float()
    for scale in (
        of_rows(weight_scale),
        activation_scale if activation_scale is None else activation_scale[..., None],
    ):
        whole = whole if scale is None else whole * scale.float().reshape(-1, scale.shape[-1])
    scale, y = of_rows(quant_scale), gated(whole, activate_left)
    return requantised(y, scale, of_rows(quant_offset), quant_mode)


@kernel("npu_add_rms_norm_quant")
def add_rms_norm_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, scales1: Tensor, zero_points1: Tensor | None, beta: Tensor | None,
    scales2: Tensor | None, zero_points2: Tensor | None, axis: int, epsilon: float, div_mode: bool,
    dst_type: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    total = x1 + x2
    y = rms_norm(total.float(), gamma.float(), epsilon)[0]
    y = y if beta is None else y + beta.float()
    number = 1 if dst_type is None else dst_type
    first = quantize(y, scales1, zero_points1, number, axis, div_mode)
    second = (
        torch.zeros_like(first)
        if scales2 is None
        else quantize(y, scales2, zero_points2, number, axis, div_mode)
    )
    return first, second, total


@kernel("npu_add_rms_norm_dynamic_quant")
def add_rms_norm_dynamic_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, smooth_scale1: Tensor | None, smooth_scale2: Tensor | None,
    beta: Tensor | None, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    total = x1 + x2
    y = rms_norm(total.float(), gamma.float(), epsilon)[0]
    y = y if beta is None else y + beta.float()
    first, scale1 = dynamic(y, None, smooth_scale1, (-1,))
    second, scale2 = (
        dynamic(y, None, smooth_scale2, (-1,)) if smooth_scale2 is not None else (first * 0, scale1 * 0)
    )
    return first, second, total, scale1.squeeze(-1), scale2.squeeze(-1)


@kernel("npu_rms_norm_quant")
def rms_norm_quant(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale: Tensor,
    offset: Tensor,
    epsilon: float,
    dst_dtype: int | None,
) -> Tensor:
    """Multiplies by the scale, which the operator with an addition divides by."""
    y = rms_norm(x.float(), gamma.float().flatten(), epsilon)[0] + beta.float().flatten()
    return integers(y * scale.float() + offset.float(), 1 if dst_dtype is None else dst_dtype)


@kernel("npu_rms_norm_quant_v2")
def rms_norm_quant_v2(
    x: Tensor, gamma: Tensor, scale: Tensor, offset: Tensor | None, beta: Tensor | None, epsilon: float, div_mode: bool,
    dst_dtype: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The quantised norm, and rstd."""
    y, rstd = rms_norm(x.float(), gamma.float(), epsilon)
    y = y if beta is None else y + beta.float()
    return quantize(y, scale, offset, 1 if dst_dtype is None else dst_dtype, -1, div_mode), rstd


@kernel("npu_gelu_quant")
def gelu_quant(
    input: Tensor, input_scale: Tensor | None, input_offset: Tensor | None, approximate: str, quant_mode: str,
    dst_type: int | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Static with the scale and offset given, dynamic with a scale of each row, which is returned."""
    check(quant_mode in ("static", "dynamic"), f"quant_mode {quant_mode!r} is not one of static, dynamic")
    y, number = F.gelu(input.float(), approximate=approximate), 1 if dst_type is None else dst_type
    if quant_mode == "dynamic":
        values, found = dynamic(y, number, input_scale, (-1,))
        return values, found.squeeze(-1)
    check(input_scale is not None, "quant_mode static needs input_scale")
    return quantize(y, input_scale, input_offset, number, -1, False), None


@kernel("npu_group_quant")
def group_quant(
    x: Tensor, scale: Tensor, group_index: Tensor, offset: Tensor | None, dst_dtype: torch.dtype | None
) -> Tensor:
    """Each row times the scale of its group; `group_index` has the groups' ends."""
    check(
        dst_dtype in (None, torch.int8, torch.qint8, 1, 12),
        f"npu_group_quant: the simulator makes int8, not {dst_dtype}",
    )
    y = x.float() * per_row(x, group_index, scale, cumulative=True).float()
    return integers(y if offset is None else y + offset.float(), 1)


@kernel("npu_grouped_matmul_swiglu_quant")
def grouped_matmul_swiglu_quant(
    x: Tensor, weight: Tensor, group_list: Tensor, weight_scale: Tensor, x_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Products of groups, gated, quantised by row; `group_list` has the groups' ends, rows beyond them are zero."""
    lengths = group_list.diff(prepend=group_list.new_zeros(1)).tolist()
    used = sum(lengths)
    products = torch.cat(
        [
            quantised_product(part, weight[i], weight_scale[i], tokens, None)
            for i, (part, tokens) in enumerate(
                zip(x[:used].split(lengths), x_scale[:used].split(lengths), strict=True)
            )
        ]
    )
    values, found = dynamic(gated(products, True), None, None, (-1,))
    below = x.shape[0] - used
    return F.pad(values, (0, 0, 0, below)), F.pad(found.squeeze(-1), (0, below)), torch.empty(0)
