"""Products that quantise what goes in, and activations or turns that are quantised after a product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.formats import TYPES
from simnpu.fused.kernels import check, kernel
from simnpu.fused.matmul import AFTER_PRODUCT
from simnpu.fused.quantisation import INT4, dynamic, integers, quantised_product, scale_of, unpacked


def of_floats(
    x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: Tensor | None, smooth: Tensor | None, mode: str
) -> Tensor:
    """[M, N] of rows [M, K], quantised here, and int8 [N, K]; a scale that is not given is found for each row."""
    check(mode in ("pertoken", "pertensor"), f"quant_mode {mode!r} is not one of pertoken, pertensor")
    check(x_scale is not None or mode == "pertoken", "quant_mode pertensor needs x_scale")
    if x_scale is None:
        values, x_scale = dynamic(x, None, smooth, (-1,))
    else:
        x_scale = x_scale.float().reshape(-1, 1)
        values = integers((x.float() if smooth is None else x.float() * smooth.float()) / x_scale, 1)
    return quantised_product(values, weight.t(), weight_scale, x_scale.expand(len(x), 1)[:, 0], None)


@kernel("npu_quant_matmul_dequant")
def quant_matmul_dequant(
    x: Tensor, quantized_weight: Tensor, weight_scale: Tensor, x_scale: Tensor | None, smooth_scale: Tensor | None,
    quant_mode: str,
) -> Tensor:  # fmt: skip
    return of_floats(x, quantized_weight, weight_scale, x_scale, smooth_scale, quant_mode).to(x.dtype)


@kernel("npu_quant_grouped_matmul_dequant")
def quant_grouped_matmul_dequant(
    x: Tensor, quantized_weight: Tensor, weight_scale: Tensor, group_list: Tensor, x_scale: Tensor | None,
    smooth_scale: Tensor | None, quant_mode: str,
) -> Tensor:  # fmt: skip
    """Each group of rows with its own int8 [N, K]; `group_list` has the groups' ends, rows beyond them are zero."""
    result = torch.zeros(len(x), quantized_weight.shape[1], dtype=x.dtype)
    start = 0
    for number, end in enumerate(group_list.tolist()):
        scale = x_scale if x_scale is None or x_scale.numel() == 1 else x_scale.flatten()[start:end]
        if end > start:
            result[start:end] = of_floats(
                x[start:end], quantized_weight[number], weight_scale[number], scale, smooth_scale, quant_mode
            ).to(x.dtype)
        start = end
    return result


@kernel("npu_quant_matmul_gelu")
def quant_matmul_gelu(
    x1: Tensor, x2: Tensor, x1_scale: Tensor, x2_scale: Tensor, bias: Tensor | None, approximate: str
) -> Tensor:
    check(
        approximate in ("gelu_tanh", "gelu_erf"),
        f"approximate must be gelu_tanh or gelu_erf, but got {approximate}",
    )
    if x1.dtype == torch.int32:
        x1, x2 = unpacked(x1), unpacked(x2)
    total = AFTER_PRODUCT[approximate](quantised_product(x1, x2, x2_scale, x1_scale, bias), None)
    return total.to(torch.bfloat16 if x2_scale.dtype == torch.bfloat16 else torch.float16)


@kernel("npu_kronecker_quant")
def kronecker_quant(
    x: Tensor, kronecker_p1: Tensor, kronecker_p2: Tensor, clip_ratio: float | None
) -> tuple[Tensor, Tensor]:
    """p1 @ x @ p2 as int4, eight in an int32, and a scale for each of its first dim."""
    check(x.shape[-1] % 8 == 0, "last dim of input x must be divisible by 8")
    turned = kronecker_p1 @ (x @ kronecker_p2)
    scale = turned.float().abs().amax((1, 2), keepdim=True) / (
        7 * (1.0 if clip_ratio is None else clip_ratio)
    )
    return integers((turned.float() / scale).half(), INT4), scale.flatten()


@kernel("npu_rotate_quant")
def rotate_quant(
    x: Tensor, rotation: Tensor, dst_dtype: int | None, axis: int | None
) -> tuple[Tensor, Tensor]:
    """Pieces of each row times the rotation, quantised by row."""
    size = rotation.shape[-1]
    check(rotation.dim() == 2 and x.dim() == 2, "npu_rotate_quant: x and rotation must be 2-D on this card")
    check(x.shape[-1] % size == 0, f"npu_rotate_quant: {x.shape[-1]} is not divisible by {size}")
    check(axis in (None, -1, 1), f"npu_rotate_quant: axis should be -1 or 1, but got {axis}")
    turned = (x.float().unflatten(-1, (-1, size)) @ rotation.float()).flatten(-2).to(x.dtype)
    values, scale = dynamic(turned, dst_dtype, None, (-1,))
    return values, scale.squeeze(-1)


@kernel("npu_quant_conv2d")
def quant_conv2d(
    input: Tensor, weight: Tensor, scale: Tensor, strides: list[int], pads: list[int], dilations: list[int],
    groups: int, offset_x: int, round_mode: str, output_dtype: int | None, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """A convolution of int8, with the scale of its channel; what lies around the input has the value `offset_x`."""
    check(round_mode == "rint", f"round_mode should be rint, but got {round_mode!r}")
    around = F.pad(input.double(), (pads[1], pads[1], pads[0], pads[0]), value=offset_x)
    total = F.conv2d(
        around, weight.double(), None if bias is None else bias.double(), strides, 0, dilations, groups
    )
    return (total.float() * scale_of(scale).view(-1, 1, 1)).to(
        TYPES[5 if output_dtype is None else output_dtype]
    )
