"""Gradients of torch's own operators that torch_npu also lets be called by name."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.convolutions import backward as convolution_gradients
from simnpu.fused.kernels import gradients, kernel


@kernel("l1_loss_backward")
def l1_loss_backward(grad_output: Tensor, input: Tensor, target: Tensor, reduction: int) -> Tensor:
    return gradients(lambda x: torch.ops.aten.l1_loss(x, target, reduction), [input], [grad_output])[0]


def of_kl_div(
    grad: Tensor, input: Tensor, target: Tensor, reduction: int, log_target: bool
) -> tuple[Tensor, Tensor]:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return torch.ops.aten.kl_div(x, y, reduction, log_target=log_target)

    return gradients(loss, (input, target), [grad])


@kernel("kl_div_backward")
def kl_div_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, reduction: int, log_target: bool
) -> Tensor:
    return of_kl_div(grad_output, input, target, reduction, log_target)[0]


@kernel("kl_div_target_backward")
def kl_div_target_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, reduction: int, log_target: bool
) -> Tensor:
    return of_kl_div(grad_output, input, target, reduction, log_target)[1]


@kernel("npu_binary_cross_entropy_with_logits_backward")
def binary_cross_entropy_with_logits_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, weight_opt: Tensor | None, pos_weight_opt: Tensor | None,
    reduction: int,
) -> Tensor:  # fmt: skip
    def loss(x: Tensor) -> Tensor:
        return torch.ops.aten.binary_cross_entropy_with_logits(
            x, target, weight_opt, pos_weight_opt, reduction
        )

    return gradients(loss, [input], [grad_output])[0]


@kernel("npu_gather_backward")
def gather_backward(grad: Tensor, self_size: list[int], dim: int, index: Tensor, sparse_grad: bool) -> Tensor:
    """Dense either way, as `sparse_grad` says nothing of the values."""
    return grad.new_zeros(self_size).scatter_add_(dim, index, grad)


@kernel("npu_renorm_backward")
def renorm_backward(grad: Tensor, input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    return gradients(lambda x: x.renorm(p, dim, maxnorm), [input], [grad])[0]


@kernel("repeat_interleave_backward_int", "repeat_interleave_backward_tensor")
def repeat_interleave_backward(grad: Tensor, input: Tensor, repeats: int | Tensor, dim: int | None) -> Tensor:
    return gradients(lambda x: x.repeat_interleave(repeats, dim), [input], [grad])[0]


@kernel("stft_backward")
def stft_backward(
    grad_output: Tensor, input: Tensor, n_fft: int, hop_length: int | None, win_length: int | None,
    window: Tensor | None, normalized: bool, onesided: bool | None, return_complex: bool | None,
) -> Tensor:  # fmt: skip
    def transform(x: Tensor) -> Tensor:
        return torch.ops.aten.stft(
            x, n_fft, hop_length, win_length, window, normalized, onesided, return_complex
        )

    return gradients(transform, [input], [grad_output])[0]


@kernel("fft_r2c_backward")
def fft_r2c_backward(
    grad: Tensor, dim: list[int], normalization: int, onesided: bool, last_dim_size: int
) -> Tensor:
    shape = list(grad.shape)
    shape[dim[-1]] = last_dim_size
    zeros = grad.real.new_zeros(shape)
    return gradients(lambda x: torch._fft_r2c(x, dim, normalization, onesided), [zeros], [grad])[0]


@kernel("fft_c2r_backward")
def fft_c2r_backward(grad: Tensor, dim: list[int], normalization: int) -> Tensor:
    size, shape = grad.shape[dim[-1]], list(grad.shape)
    shape[dim[-1]] = size // 2 + 1
    zeros = torch.zeros(shape, dtype=grad.dtype.to_complex())
    return gradients(lambda x: torch._fft_c2r(x, dim, normalization, size), [zeros], [grad])[0]


@kernel("matmul_double_backward")
def matmul_double_backward(
    grad_self: Tensor | None, grad_other: Tensor | None, grad_out: Tensor, input: Tensor, other: Tensor,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of `grad_out` and both factors, from those of what matmul's backward gives the factors."""
    upstream = [
        torch.zeros_like(like) if grad is None else grad
        for grad, like in ((grad_self, input), (grad_other, other))
    ]

    def backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(a @ b, (a, b), grad, create_graph=True)

    found = gradients(backward, (grad_out, input, other), upstream)
    return tuple(grad if wanted else None for grad, wanted in zip(found, mask, strict=True))


@kernel("slow_conv_dilated2d_backward")
def slow_conv_dilated2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], output_mask: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return convolution_gradients(
        grad_output, input, weight, (stride, padding, dilation), None, 1, output_mask
    )


@kernel("slow_conv_transpose2d_backward")
def slow_conv_transpose2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, kernel_size: list[int], stride: list[int],
    padding: list[int], output_padding: list[int], dilation: list[int], output_mask: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    setting = (stride, padding, dilation)
    return convolution_gradients(grad_output, input, weight, setting, output_padding, 1, output_mask)


@kernel("_conv_depthwise2d_backward")
def conv_depthwise2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], output_mask: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    setting, channels = (stride, padding, dilation), input.shape[1]
    mask = [*output_mask, False]
    return convolution_gradients(grad_output, input, weight, setting, None, channels, mask)[:2]
