"""Convolutions under torch_npu's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel


@kernel("npu_convolution", "npu_conv2d", "npu_conv2d.out", "npu_conv3d", "npu_conv3d.out")
def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return torch.convolution(input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


@kernel("npu_convolution_transpose", "npu_conv_transpose2d")
def convolution_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    output_padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return torch.convolution(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    setting: tuple[list[int], list[int], list[int]],
    output_padding: list[int] | None,
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias that `mask` asks for; `output_padding` only of a transposed one."""
    transposed = output_padding is not None
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    padding = output_padding if transposed else [0] * len(setting[0])
    return torch.ops.aten.convolution_backward(
        grad, input, weight, [channels], *setting, transposed, padding, groups, mask
    )


@kernel("npu_convolution_backward", "npu_conv2d_backward")
def convolution_backward(
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    return backward(grad_output, input, weight, (stride, padding, dilation), None, groups, output_mask)


@kernel("npu_conv3d_backward")
def conv3d_backward(
    input: Tensor,
    grad: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    return backward(grad, input, weight, (stride, padding, dilation), None, groups, output_mask)


@kernel("npu_conv_transpose2d_backward", "npu_conv_transpose3d_backward")
def conv_transpose_backward(
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    padding: list[int],
    output_padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    setting = (stride, padding, dilation)
    return backward(grad_output, input, weight, setting, output_padding, groups, output_mask)


@kernel("npu_convolution_transpose_backward")
def convolution_transpose_backward(
    input: Tensor,
    grad: Tensor,
    weight: Tensor,
    padding: list[int],
    output_padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    grad_input_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    setting = (stride, padding, dilation)
    return backward(grad, input, weight, setting, output_padding, groups, grad_input_mask)


def samples(picture: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[N, G, C, H, W] between its pixels at [N, G, ...], with zeros around: [N, G, C, ...]."""
    _, _, channels, height, width = picture.shape
    flat = picture.flatten(3)
    total = picture.new_zeros(())
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = rows.floor() + row, columns.floor() + column
        share = (1 - (rows - y).abs()) * (1 - (columns - x).abs())
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long().flatten(2).unsqueeze(2)
        found = flat.gather(3, place.expand(-1, -1, channels, -1)).unflatten(3, rows.shape[2:])
        total = total + found * (share * inside).unsqueeze(2)
    return total


def moved_samples(
    x: Tensor, offset: Tensor, size: list[int], setting: tuple[list[int], list[int], list[int]], groups: int
) -> Tensor:
    """What each place of the kernel sees, [N, C, H * kernel, W * kernel].

    Offsets are [N, 3 * groups * kernel * kernel, H, W]: all columns', then all rows', then the factors.
    """
    stride, padding, dilation = setting
    height, width = offset.shape[2:]
    parts = offset.view(offset.shape[0], 3, groups, *size, height, width)

    def grid(axis: int, count: int) -> tuple[Tensor, Tensor]:
        """Where the windows and, in them, the places of the kernel start along an axis."""
        windows = torch.arange(count) * stride[2 + axis] - padding[2 * axis]
        return windows, torch.arange(size[axis]) * dilation[2 + axis]

    (top, down), (left, along) = grid(0, height), grid(1, width)
    rows = parts[:, 1] + down.view(-1, 1, 1, 1) + top.view(-1, 1)
    columns = parts[:, 0] + along.view(-1, 1, 1) + left
    found = samples(x.unflatten(1, (groups, -1)), rows, columns) * parts[:, 2].unsqueeze(2)
    return found.permute(0, 1, 2, 5, 3, 6, 4).flatten(5, 6).flatten(3, 4).flatten(1, 2)


@kernel("npu_deformable_conv2d")
def deformable_conv(
    input: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, deformable_groups: int, modulated: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the result and the samples that it is the convolution of; `kernel_size` is in the weight."""
    check(modulated, "modulated should be true, but got false")
    size = list(weight.shape[2:])
    found = moved_samples(input, offset, size, (stride, padding, dilation), deformable_groups)
    return F.conv2d(found, weight, bias, size, groups=groups), found


@kernel("npu_deformable_conv2dbk")
def deformable_conv_backward(
    input: Tensor, grad_output: Tensor, offset_out: Tensor, weight: Tensor, offset: Tensor, kernel_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int, deformable_groups: int, modulated: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of input, weight, offset and bias; the samples are taken again."""
    size = list(weight.shape[2:])

    def forward(x: Tensor, matrix: Tensor, moves: Tensor) -> Tensor:
        found = moved_samples(x, moves, size, (stride, padding, dilation), deformable_groups)
        return F.conv2d(found, matrix, None, size, groups=groups)

    return *gradients(forward, (input, weight, offset), (grad_output,)), grad_output.sum((0, 2, 3))


def causal_conv1d(input: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """[S, B, H]: each channel's last rows times weight [W, H]; tokens outside the mask [B, S] are zero."""
    rows = F.pad(input.float().permute(1, 2, 0), (weight.shape[0] - 1, 0))
    found = F.conv1d(rows, weight.float().t()[:, None], groups=input.shape[2]).permute(2, 0, 1)
    return (found if mask is None else found * mask.t()[..., None]).to(input.dtype)


@kernel("npu_masked_causal_conv1d")
def masked_causal_conv1d(input: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    return causal_conv1d(input, weight, mask)


@kernel("npu_masked_causal_conv1d_backward")
def masked_causal_conv1d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    return gradients(lambda x, w: causal_conv1d(x, w, mask), (input, weight), (grad_output,))
