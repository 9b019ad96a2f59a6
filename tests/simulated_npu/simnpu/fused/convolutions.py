"""Convolutions under torch_npu's names."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import kernel


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
