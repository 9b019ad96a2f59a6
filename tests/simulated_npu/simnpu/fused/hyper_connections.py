"""Hyper-connections (mHC): several residual streams that are mixed before and after a layer by learnt matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel

ALIGNED = 8  # the width to which what backward needs is padded


@kernel("npu_mhc_pre")
def mhc_pre(
    x: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor, gamma: Tensor | None, norm_eps: float, hc_eps: float,
    out_flag: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The layer's input, weights of its output, logits of the streams' mixture (none where alpha has two values), and
    for backward 1 / rms, the products with phi, and the weights of the input."""
    streams = x.shape[-2]
    flat = x.float().flatten(-2)
    inv_rms = torch.rsqrt(flat.square().mean(-1) + norm_eps)
    h_mix = (flat if gamma is None else flat * gamma.float().flatten()) @ phi.float().t()
    logits = h_mix * inv_rms[..., None]
    pre = torch.sigmoid(logits[..., :streams] * alpha[0] + bias[:streams]) + hc_eps
    post = 2 * torch.sigmoid(logits[..., streams : 2 * streams] * alpha[1] + bias[streams : 2 * streams])
    mixed = torch.zeros(1)
    if alpha.numel() == 3:
        mixed = logits[..., 2 * streams :] * alpha[2] + bias[2 * streams :]
        mixed = mixed.unflatten(-1, (streams, streams))
    h_in = (pre[..., None] * x.float()).sum(-2).to(x.dtype)
    return h_in, post, mixed, inv_rms, h_mix, pre


@kernel("npu_mhc_pre_backward")
def mhc_pre_backward(
    x: Tensor, phi: Tensor, alpha: Tensor, grad_h_in: Tensor, grad_h_post: Tensor, grad_h_res: Tensor,
    inv_rms: Tensor, h_mix: Tensor, h_pre: Tensor, h_post: Tensor, gamma: Tensor | None, hc_eps: float,
    grad_x_post: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, phi, alpha, bias and gamma; `grad_x_post` is added to that of x."""
    streams, wide, flat = x.shape[-2], x.float(), x.float().flatten(-2)
    sigmoid_pre, sigmoid_post = h_pre - hc_eps, h_post / 2
    to_pre = (grad_h_in.float()[..., None, :] * wide).sum(-1) * sigmoid_pre * (1 - sigmoid_pre)
    to_post = 2 * grad_h_post.float() * sigmoid_post * (1 - sigmoid_post)
    parts = [to_pre, to_post]
    if alpha.numel() == 3:
        parts.append(grad_h_res.float().flatten(-2))
    rows = torch.cat(parts, -1).flatten(0, -2)
    scale, products = inv_rms.reshape(-1, 1), h_mix.flatten(0, -2)
    widths = [part.shape[-1] for part in parts]
    by_part = (rows * products * scale).split(widths, -1)
    to_logits = rows * alpha.float().repeat_interleave(torch.tensor(widths))
    to_products = to_logits * scale
    flat_rows, factor = flat.flatten(0, -2), 1.0 if gamma is None else gamma.float().flatten()
    back = to_products @ phi.float()
    through_rms = -(to_logits * products).sum(-1, keepdim=True) * scale.pow(3) * flat_rows / flat.shape[-1]
    grad_x = (back * factor + through_rms).view_as(flat).unflatten(-1, x.shape[-2:])
    grad_x = grad_x + h_pre[..., None] * grad_h_in.float()[..., None, :]
    grad_gamma = (back * flat_rows).sum(0)
    return (
        (grad_x if grad_x_post is None else grad_x + grad_x_post.float()).to(x.dtype),
        to_products.t() @ (flat_rows * factor),
        torch.stack([part.sum() for part in by_part]),
        rows.sum(0),
        grad_gamma.view(streams, -1) if gamma is None else grad_gamma.view_as(gamma),
    )


def after_layer(x: Tensor, h_res: Tensor | None, h_out: Tensor, h_post: Tensor) -> Tensor:
    """Each stream: what the layer gave, weighted, and its mixture of all streams."""
    kept = x.float() if h_res is None else h_res.float().transpose(-1, -2) @ x.float()
    return (h_post.float()[..., None] * h_out.float()[..., None, :] + kept).to(x.dtype)


@kernel("npu_mhc_post")
def mhc_post(x: Tensor, h_res: Tensor | None, h_out: Tensor, h_post: Tensor) -> Tensor:
    return after_layer(x, h_res, h_out, h_post)


@kernel("npu_mhc_post_backward")
def mhc_post_backward(
    grad_y: Tensor, x: Tensor, h_res: Tensor | None, h_out: Tensor, h_post: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, h_res, h_out and h_post."""
    if h_res is None:
        grad_x, grad_out, grad_post = gradients(
            lambda a, c, d: after_layer(a, None, c, d), (x, h_out, h_post), (grad_y,)
        )
        return grad_x, torch.zeros(1), grad_out, grad_post
    return gradients(after_layer, (x, h_res, h_out, h_post), (grad_y,))


@kernel("npu_mhc_sinkhorn")
def mhc_sinkhorn(
    x: Tensor, eps: float, num_iters: int, out_flag: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows and columns are made to sum to one in turns, from the softmax of the rows on.

    With out_flag the results and the sums of each turn follow, padded; how they lie there is known to backward only.
    """
    check(num_iters > 0, f"npu_mhc_sinkhorn: num_iters is positive, got {num_iters}")
    matrices = x.flatten(0, -3)
    first = torch.softmax(matrices, -1)
    results, sums, y = [first], [torch.ones_like(first[..., 0])], first + eps
    for turn in range(1, 2 * num_iters):
        dim = -2 if turn % 2 else -1
        total = y.sum(dim, keepdim=True) + eps
        y = y / total
        results.append(y)
        sums.append(total.squeeze(dim))
    if not out_flag:
        return y.view_as(x), None, None
    width = ALIGNED - x.shape[-1]
    padded = (
        torch.nn.functional.pad(torch.stack(values), (0, width)).flatten() for values in (results, sums)
    )
    return y.view_as(x), *padded


@kernel("npu_mhc_sinkhorn_backward")
def mhc_sinkhorn_backward(grad_y: Tensor, norm: Tensor, sum: Tensor) -> Tensor:
    size = grad_y.shape[-1]
    grad = grad_y.flatten(0, -3)
    results = norm.view(-1, *grad.shape[:-1], ALIGNED)[..., :size]
    totals = sum.view(-1, *grad.shape[:-2], ALIGNED)[..., :size]
    for turn in range(results.shape[0] - 1, 0, -1):
        dim, y = -2 if turn % 2 else -1, results[turn]
        grad = (grad - (grad * y).sum(dim, keepdim=True)) / totals[turn].unsqueeze(dim)
    softmax = results[0]
    return (softmax * (grad - (grad * softmax).sum(-1, keepdim=True))).view_as(grad_y)
