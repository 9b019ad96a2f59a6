"""Quantised values and what is computed from them: integers with a scale, or two int4 in a byte, eight in an int32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.formats import TYPES
from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.microscaling import EIGHT_BITS, decoded, is_microscaled, plain

INT4 = 16  # torch's number of quint4x2
INTEGERS = {12: torch.int8, 13: torch.uint8, 14: torch.int32, 1: torch.int8, 0: torch.uint8, 3: torch.int32}
QUANTISED = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
SCALE_BITS, IS_QUANT, OFFSET_SHIFT, OFFSET_BITS = 0xFFFFE000, 1 << 46, 37, 0x1FF


def packed(values: Tensor) -> Tensor:
    """Eight int4 in an int32 along the last axis, the first in the lowest bits."""
    check(values.shape[-1] % 8 == 0, f"int4 needs a last dim that 8 divides, got {tuple(values.shape)}")
    nibbles = values.long().unflatten(-1, (-1, 8)) & 15
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpacked(words: Tensor, axis: int = -1) -> Tensor:
    """The int4 of int32 words, which lie along this axis."""
    nibbles = (words.long().movedim(axis, -1)[..., None] >> torch.arange(0, 32, 4)) & 15
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2).movedim(-1, axis)


def integers(values: Tensor, number: int) -> Tensor:
    """Rounded to the nearest, ties to even, and kept within the type; also floats of eight bits."""
    if number == INT4:
        return packed(values.round().clamp(-8, 7))
    if TYPES.get(number) in EIGHT_BITS:
        limit = EIGHT_BITS[TYPES[number]].largest
        return values.clamp(-limit, limit).to(TYPES[number])
    if number not in INTEGERS:
        raise NotSimulated(f"the simulator does not quantise to the type number {number}")
    limits = torch.iinfo(INTEGERS[number])
    return values.double().round().clamp(limits.min, limits.max).to(INTEGERS[number])


def largest(number: int) -> float:
    small = EIGHT_BITS.get(TYPES.get(number))
    return small.largest if small else 7 if number == INT4 else 127


def product(a: Tensor, b: Tensor) -> Tensor:
    """Exact sums of products of integers."""
    return a.double() @ b.double()


def scale_of(scale: Tensor) -> Tensor:
    """A float scale; an int64 holds its bits."""
    if scale.dtype != torch.int64:
        return scale.float()
    return (scale & 0xFFFFFFFF).to(torch.int64).view(torch.int32)[..., ::2].contiguous().view(torch.float32)


def dynamic(
    x: Tensor, number: int | None, smooth: Tensor | None, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Values and the scale that makes the largest of these dims the type's largest."""
    number = 1 if number is None else number
    wide = x.float() if smooth is None else x.float() * smooth.float()
    scale = wide.abs().amax(dims, keepdim=True) / largest(number)
    return integers(wide / scale.clamp_min(torch.finfo(torch.float32).tiny), number), scale


def per_row(rows: Tensor, group_index: Tensor | None, values: Tensor, cumulative: bool = False) -> Tensor:
    """What each row gets of values that groups have; `group_index` has the groups' ends or lengths."""
    if group_index is None or (values.dim() == 2 and values.shape[0] == 1):
        return values
    lengths = group_index.long()
    if cumulative:
        lengths = lengths.diff(prepend=lengths.new_zeros(1))
    index = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
    index = F.pad(index, (0, rows.shape[0] - index.numel()), value=lengths.numel() - 1)
    return values.reshape(lengths.numel(), -1)[index]


def quant_dims(x: Tensor, mode: str) -> tuple[int, ...]:
    known = {"pertoken": (-1,), "perchannel": (-2,), "pertensor": tuple(range(x.dim()))}
    if mode not in known:
        raise NotSimulated(f"the simulator has no quant_mode {mode!r}")
    return known[mode]


@kernel("npu_dynamic_quant")
def dynamic_quant(
    input: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int | None,
    quant_mode: str,
) -> tuple[Tensor, Tensor]:
    if smooth_scales is not None:
        smooth_scales = per_row(input, group_index, smooth_scales, cumulative=True)
    dims = quant_dims(input, quant_mode)
    y, scale = dynamic(input, dst_type, smooth_scales, dims)
    return y, scale.reshape(1) if quant_mode == "pertensor" else scale.squeeze(dims)


@kernel("npu_dynamic_quant_asymmetric")
def dynamic_quant_asymmetric(
    input: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int | None,
    quant_mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    number, dims = 1 if dst_type is None else dst_type, quant_dims(input, quant_mode)
    if smooth_scales is not None:
        input = input.float() * per_row(input, group_index, smooth_scales, cumulative=True).float()
    x, top = input.float(), largest(number)
    highest, lowest = x.amax(dims, keepdim=True), x.amin(dims, keepdim=True)
    scale = ((highest - lowest) / (2 * top + 1)).clamp_min(torch.finfo(torch.float32).tiny)
    offset = top - highest / scale
    y = integers(x / scale + offset, number)
    if quant_mode == "pertensor":
        return y, scale.reshape(1), offset.reshape(1)
    return y, scale.squeeze(dims), offset.squeeze(dims)


def along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """A vector of scales for this axis; whatever has more dims fits by itself."""
    if values.dim() != 1 or values.numel() == 1:
        return values.float()
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.float().view(shape)


@kernel("npu_quantize")
def quantize(
    input: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int, div_mode: bool
) -> Tensor:
    scale = along(scales, axis, input)
    scaled = input.float() / scale if div_mode else input.float() * scale
    return integers(scaled if zero_points is None else scaled + along(zero_points, axis, input), dtype)


@kernel("npu_anti_quant")
def anti_quant(
    x: Tensor, scale: Tensor, offset: Tensor | None, dst_dtype: int | None, src_dtype: int | None
) -> Tensor:
    values = (unpacked(x) if x.dtype == torch.int32 else x).float()
    kind = torch.float16 if dst_dtype is None else TYPES[dst_dtype]
    return ((values if offset is None else values + offset.float()) * scale.float()).to(kind)


@kernel("npu_trans_quant_param")
def trans_quant_param(scale: Tensor, offset: Tensor | None) -> Tensor:
    """One int64: the scale's upper 19 bits, the offset in nine bits, and a mark."""
    bits = scale.float().contiguous().view(torch.int32).long() & SCALE_BITS
    if offset is not None:
        bits = bits | (offset.float().round().clamp(-256, 255).long() & OFFSET_BITS) << OFFSET_SHIFT
    return bits | IS_QUANT


def quantised_product(
    x1: Tensor, x2: Tensor, scale: Tensor, pertoken: Tensor | None, bias: Tensor | None
) -> Tensor:
    """A bias of integers is added before the scale, one of floats after it."""
    total = product(x1, x2)
    if bias is not None and not bias.is_floating_point():
        total = total + bias
    total = total.float() * scale_of(scale)
    if pertoken is not None:
        total = total * pertoken.float()[..., None]
    return total + bias.float() if bias is not None and bias.is_floating_point() else total


def microscaled_product(
    x1: Tensor, x2: Tensor, scale: Tensor, pertoken: Tensor, numbers: tuple[int | None, int | None]
) -> Tensor:
    """Blocks of both lie along the inner axis, of which four bits of a transposed weight make it half as long."""
    left = plain(decoded(x1, numbers[0]), pertoken, -1)
    inner = left.shape[-1]
    right = decoded(x2, numbers[1], -2 if x2.shape[-2] * 2 == inner else -1)
    check(right.shape[-2] == inner, f"npu_quant_matmul: {tuple(x1.shape)} does not fit {tuple(x2.shape)}")
    return left @ plain(right, scale, -2)


@kernel("npu_quant_matmul")
def quant_matmul(
    x1: Tensor, x2: Tensor, scale: Tensor, offset: Tensor | None, pertoken_scale: Tensor | None,
    bias: Tensor | None, output_dtype: int | None, x1_dtype: int | None, x2_dtype: int | None,
    pertoken_scale_dtype: int | None, scale_dtype: int | None, group_sizes: list[int] | None,
) -> Tensor:  # fmt: skip
    if is_microscaled(scale, scale_dtype):
        total = microscaled_product(x1, x2, scale, pertoken_scale, (x1_dtype, x2_dtype))
        return (total if bias is None else total + bias.float()).to(TYPES[output_dtype])
    if x1_dtype is not None or x2_dtype is not None or group_sizes:
        raise NotSimulated("npu_quant_matmul: of types given by their numbers, the simulator has those of mx")
    if x1.dtype == torch.int32:
        # A transposed weight has its words along the other axis.
        x1, x2 = unpacked(x1), unpacked(x2, -1 if x2.shape[-2] == x1.shape[-1] * 8 else -2)
    check(x1.shape[-1] == x2.shape[-2], f"npu_quant_matmul: {tuple(x1.shape)} does not fit {tuple(x2.shape)}")
    total = quantised_product(x1, x2, scale, pertoken_scale, bias)
    if output_dtype in (None, 1):
        return integers(total if offset is None else total + offset.float(), 1)
    return total.round().to(torch.int32) if output_dtype == 3 else total.to(TYPES[output_dtype])


def plain_weight(weight: Tensor, scale: Tensor, offset: Tensor | None, group: int) -> Tensor:
    """[..., K, N] of (weight + offset) * scale; with groups a scale counts for so many rows."""
    values = (unpacked(weight) if weight.dtype == torch.int32 else weight).float()
    if group:
        scale = scale.repeat_interleave(group, -2)
        offset = None if offset is None else offset.repeat_interleave(group, -2)
    return (values if offset is None else values + offset.float()) * scale.float()


@kernel("npu_weight_quant_batchmatmul")
def weight_quant_batchmatmul(
    x: Tensor, weight: Tensor, antiquant_scale: Tensor, antiquant_offset: Tensor | None, quant_scale: Tensor | None,
    quant_offset: Tensor | None, bias: Tensor | None, antiquant_group_size: int,
) -> Tensor:  # fmt: skip
    out = x.float() @ plain_weight(weight, antiquant_scale, antiquant_offset, antiquant_group_size)
    out = out if bias is None else out + bias.float()
    if quant_scale is None:
        return out.to(x.dtype)
    out = out * scale_of(quant_scale)
    return integers(out if quant_offset is None else out + quant_offset.float(), 1)


@kernel("npu_convert_weight_to_int4pack")
def convert_weight_to_int4pack(weight: Tensor) -> Tensor:
    return packed(weight)


@kernel("npu_dequant_bias")
def dequant_bias(
    x: Tensor, weight_scale: Tensor, activation_scale: Tensor | None, bias: Tensor | None,
    output_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    whole = bias is not None and not bias.is_floating_point()
    out = (x + bias if whole else x).float() * weight_scale.float()
    if activation_scale is not None:
        out = out * activation_scale.float().reshape(-1, 1)
    return (out + bias.float() if bias is not None and not whole else out).to(output_dtype or torch.float16)


@kernel("npu_ifmr")
def ifmr(
    data: Tensor, data_min: Tensor, data_max: Tensor, cumsum: Tensor, min_percentile: float, max_percentile: float,
    search_start: float, search_end: float, search_step: float, with_offset: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Scale [1] and offset [1] with the least squared error: bounds from a histogram are stretched step by step."""
    share, span = cumsum.float() / data.numel(), (data_max - data_min).float()
    high, low = (
        (share < limit).sum() / cumsum.numel() * span + data_min.float()
        for limit in (max_percentile, 1 - min_percentile)
    )
    steps = torch.arange(search_start, search_end, search_step)
    if with_offset:
        high, low = high.clamp(min=0), low.clamp(max=0)
        scales = (high * steps - low) / 255
        scales = torch.where(scales < torch.finfo(torch.float32).eps, 1.0, scales)
        offsets = -((low / scales).round() + 128)
    else:
        scales = torch.maximum(high.abs(), low.abs()) * steps / 127
        offsets = torch.zeros_like(scales)
    values = data.float().flatten()
    at = offsets[:, None]
    errors = (((values / scales[:, None]).round() + at).clamp(-128, 127) - at) * scales[:, None] - values
    best = errors.square().sum(1).argmin()
    return scales[best].view(1), offsets[best].view(1)


# A card gives the integers themselves, not a tensor of one of torch's quantised types.
@kernel("aten::quantize_per_tensor")
def quantize_per_tensor(
    self: Tensor, scale: float | Tensor, zero_point: int | Tensor, dtype: torch.dtype
) -> Tensor:
    limits = torch.iinfo(QUANTISED[dtype])
    return (self.float() / scale).round().add(zero_point).clamp(limits.min, limits.max).to(QUANTISED[dtype])


@kernel("aten::quantize_per_channel")
def quantize_per_channel(
    self: Tensor, scales: Tensor, zero_points: Tensor, axis: int, dtype: torch.dtype
) -> Tensor:
    points = along(zero_points, axis, self)
    return quantize_per_tensor(self, along(scales, axis, self), points, dtype)
