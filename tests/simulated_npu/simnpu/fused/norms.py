"""Normalisations: computed in float32, returned in the type of the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel


def last_dims(x: Tensor, gamma: Tensor) -> tuple[int, ...]:
    return tuple(range(x.dim() - gamma.dim(), x.dim()))


@kernel("npu_rms_norm")
def rms_norm(input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns y of input's type (float32 only if gamma's type is wider) and rstd, float32, of shape [..., 1]."""
    check(
        input.shape[-gamma.dim() :] == gamma.shape,
        f"npu_rms_norm: gamma {tuple(gamma.shape)} must match the last dims of {tuple(input.shape)}",
    )
    wide = input.float()
    rstd = torch.rsqrt(wide.pow(2).mean(last_dims(input, gamma), keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(input.dtype), rstd


@kernel("npu_rms_norm_backward")
def rms_norm_backward(dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Uses the rstd that forward kept, as the device does; the gradient of gamma is float32."""
    x, upstream = input.float(), dy.float()
    scaled = upstream * gamma.float()
    mean = (scaled * x).mean(last_dims(input, gamma), keepdim=True)
    dx = rstd * (scaled - x * rstd * rstd * mean)
    dgamma = (upstream * x * rstd).sum(tuple(range(input.dim() - gamma.dim())))
    return dx.to(input.dtype), dgamma


@kernel("npu_gemma_rms_norm")
def gemma_rms_norm(input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As rms_norm, with 1 + gamma as the weight."""
    return rms_norm(input, gamma.float() + 1, epsilon)


@kernel("npu_add_rms_norm")
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    total = x1 + x2
    y, rstd = rms_norm(total, gamma, epsilon)
    return y, rstd, total


@kernel("npu_add_rms_norm_cast")
def add_rms_norm_cast(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norm in float32 and in the inputs' type, rstd, and the sum."""
    total = x1 + x2
    y, rstd = rms_norm(total, gamma, epsilon)
    return y.float(), y, rstd, total


@kernel("npu_deep_norm")
def deep_norm(
    x: Tensor, gx: Tensor, beta: Tensor, gamma: Tensor, alpha: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of alpha * x + gx; returns mean, rstd, y."""
    total = alpha * x.float() + gx.float()
    dims = last_dims(x, gamma)
    mean = total.mean(dims, keepdim=True)
    rstd = torch.rsqrt((total - mean).pow(2).mean(dims, keepdim=True) + epsilon)
    y = (total - mean) * rstd * gamma.float() + beta.float()
    return mean, rstd, y.to(x.dtype)


@kernel("npu_deep_norm_backward")
def deep_norm_backward(
    dy: Tensor, x: Tensor, gx: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, alpha: float
) -> tuple[Tensor, ...]:
    def forward(x: Tensor, gx: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
        total = alpha * x.float() + gx.float()
        dims = last_dims(x, gamma)
        centred = total - total.mean(dims, keepdim=True)
        # the variance is differentiated too; its epsilon is what forward's rstd implies
        epsilon = rstd.pow(-2) - centred.detach().pow(2).mean(dims, keepdim=True)
        normal = centred * torch.rsqrt(centred.pow(2).mean(dims, keepdim=True) + epsilon)
        return (normal * gamma.float() + beta.float()).to(x.dtype)

    return gradients(forward, (x, gx, torch.zeros_like(gamma), gamma), [dy])


@kernel("npu_layer_norm_eval")
def layer_norm_eval(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


@kernel("npu_add_layer_norm")
def add_layer_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, additional_output: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x1.float() + x2.float()
    dims = last_dims(x1, gamma)
    mean = total.mean(dims, keepdim=True)
    rstd = torch.rsqrt((total - mean).pow(2).mean(dims, keepdim=True) + epsilon)
    kind = torch.promote_types(x1.dtype, x2.dtype)
    y = ((total - mean) * rstd * gamma.float() + beta.float()).to(kind)
    return y, mean, rstd, total.to(kind) if additional_output else torch.empty(0)


@kernel("npu_add_layer_norm_backward")
def add_layer_norm_backward(
    dy_opt: Tensor | None,
    x1: Tensor,
    x2: Tensor,
    rstd: Tensor,
    mean: Tensor,
    gamma: Tensor,
    dsum_opt: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x1, x2, gamma and beta."""
    total = x1.float() + x2.float()
    upstream = torch.zeros_like(total) if dy_opt is None else dy_opt.float()
    dims, rows = last_dims(x1, gamma), tuple(range(x1.dim() - gamma.dim()))
    normal, scaled = (total - mean) * rstd, upstream * gamma.float()
    inner = scaled - scaled.mean(dims, keepdim=True) - normal * (scaled * normal).mean(dims, keepdim=True)
    dx = rstd * inner + (0 if dsum_opt is None else dsum_opt.float())
    dgamma, dbeta = (upstream * normal).sum(rows), upstream.sum(rows)
    return dx.to(x1.dtype), dx.to(x2.dtype), dgamma.to(gamma.dtype), dbeta.to(gamma.dtype)


@kernel("npu_group_norm_silu")
def group_norm_silu(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns silu(group_norm(input)), and mean and rstd of every group."""
    groups = input.float().reshape(input.shape[0], group, -1)
    mean = groups.mean(-1)
    rstd = torch.rsqrt(groups.var(-1, unbiased=False) + eps)
    return F.silu(F.group_norm(input, group, weight, bias, eps)), mean.to(input.dtype), rstd.to(input.dtype)


@kernel("npu_group_norm_swish")
def group_norm_swish(
    input: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float | None, swish_scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """With y = group_norm(input): y * sigmoid(scale * y), and mean and rstd of every group."""
    y = F.group_norm(input.float(), num_groups, weight.float(), bias.float(), eps)
    groups = input.float().reshape(input.shape[0], num_groups, -1)
    rstd = torch.rsqrt(groups.var(-1, unbiased=False) + eps)
    return (y * torch.sigmoid(swish_scale * y)).to(input.dtype), *(
        x.to(input.dtype) for x in (groups.mean(-1), rstd)
    )


@kernel("npu_add_rms_norm_v2")
def add_rms_norm_v2(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """In place: x1 becomes the norm and x2 the sum; returns rstd."""
    y, rstd, total = add_rms_norm(x1, x2, gamma, epsilon)
    x1.copy_(y)
    x2.copy_(total)
    return rstd


@kernel("npu_add_rms_norm_v2_functional")
def add_rms_norm_v2_functional(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd, total = add_rms_norm(x1, x2, gamma, epsilon)
    return rstd, y, total


@kernel("npu_group_norm_swish_grad")
def group_norm_swish_grad(
    grad: Tensor, input: Tensor, num_groups: int, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
    grad_input_mask: list[bool], swish_scale: float | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of input, weight and bias, those that the mask asks for; uses the mean and rstd that forward kept."""
    groups, wide = (input.shape[0], num_groups, -1), (1, -1, *[1] * (input.dim() - 2))
    scales = rstd.float()[..., None]
    normal = (input.float().reshape(groups) - mean.float()[..., None]) * scales
    each = normal.reshape(input.shape)
    y = each * weight.float().view(wide) + bias.float().view(wide)
    gate = torch.sigmoid(swish_scale * y)
    upstream = grad.float() * gate * (1 + swish_scale * y * (1 - gate))
    inner = (upstream * weight.float().view(wide)).reshape(groups)
    centred = inner - inner.mean(-1, keepdim=True) - normal * (inner * normal).mean(-1, keepdim=True)
    channels = (0, *range(2, input.dim()))
    found = (
        (centred * scales).reshape(input.shape).to(input.dtype),
        (upstream * each).sum(channels).to(weight.dtype),
        upstream.sum(channels).to(bias.dtype),
    )
    return tuple(value if wanted else None for value, wanted in zip(found, grad_input_mask, strict=True))


@kernel("npu_normalize_batch")
def normalize_batch(input: Tensor, seq_len: Tensor, normalize_type: int) -> Tensor:
    """[B, C, S] by the mean and deviation of each sample's first values: of each channel (0), or of all (1)."""
    check(normalize_type in (0, 1), f"normalize_type is 0 or 1, got {normalize_type}")
    dims = (-1,) if normalize_type == 0 else (-2, -1)
    parts = [sample[:, :length] for sample, length in zip(input.float(), seq_len.tolist(), strict=True)]
    mean = torch.stack([part.mean(dims, keepdim=True) for part in parts])
    deviation = torch.stack([part.std(dims, keepdim=True) for part in parts])
    return ((input.float() - mean) / (deviation + 1e-5)).to(input.dtype)
