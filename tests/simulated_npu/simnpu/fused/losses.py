"""Cross entropies: of logits, and of a linear layer without its logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel


def loss_of(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return F.cross_entropy(
        input.float(),
        target,
        weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


@kernel("npu_cross_entropy_loss")
def cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns loss, log probabilities, and two empty tensors for the z-loss."""
    loss = loss_of(input, target, weight, reduction, ignore_index, label_smoothing)
    return (
        loss.to(input.dtype),
        F.log_softmax(input.float(), -1).to(input.dtype),
        torch.empty(0),
        torch.empty(0),
    )


@kernel("npu_cross_entropy_loss_backward")
def cross_entropy_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grad_zloss: Tensor | None,
    lse_for_zloss: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """Log probabilities are logits too: the same softmax, so the same gradient."""
    return gradients(
        lambda logits: loss_of(logits, target, weight, reduction, ignore_index, label_smoothing).to(
            log_prob.dtype
        ),
        [log_prob],
        [grad_loss],
    )[0]


# Cross entropy of a linear layer whose vocabulary is split over ranks: before and after they exchange their sums.
@kernel("npu_fused_linear_online_max_sum")
def fused_linear_online_max_sum(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    vocab_start_index: int,
    vocab_end_index: int,
    return_logits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Per row: largest logit, sum of exponentials, the target's logit less the largest; then bits of the targets
    outside [start, end], the targets from the start on, and the logits."""
    logits = input.float() @ weight.float().t()
    largest = logits.amax(-1)
    outside = (target < vocab_start_index) | (target > vocab_end_index)
    local = (target - vocab_start_index).masked_fill(outside, 0)
    shifted = logits - largest[:, None]
    predicted = shifted.gather(-1, local.long()[:, None])[:, 0].masked_fill(outside, 0)
    bits = F.pad(outside, (0, -outside.numel() % 8), value=True)
    kept = logits.to(input.dtype) if return_logits else None
    return largest, shifted.exp().sum(-1), predicted, mask_bytes(bits), local, kept


def mask_bytes(bits: Tensor) -> Tensor:
    """Eight bits a byte, the first in the highest."""
    return (bits.view(-1, 8).to(torch.uint8) << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(
        -1, dtype=torch.uint8
    )


@kernel("npu_fused_cross_entropy_loss_with_max_sum")
def fused_cross_entropy_loss_with_max_sum(
    logits_max: Tensor, sum_exp_logits: Tensor, predicted_logits: Tensor, vocab_parallel_logits: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The loss of each row, and the softmax where logits are given."""
    loss = sum_exp_logits.log() - predicted_logits
    if vocab_parallel_logits is None:
        return loss, None
    return loss, (vocab_parallel_logits.float() - logits_max[:, None]).exp() / sum_exp_logits[:, None]


@kernel("npu_fused_linear_cross_entropy_loss_with_max_sum_backward")
def fused_linear_cross_entropy_loss_with_max_sum_backward(
    grad: Tensor, input: Tensor, weight: Tensor, target_mask: Tensor, masked_target: Tensor, logits_max: Tensor | None,
    sum_exp_logits: Tensor | None, softmax: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of input and weight; without the softmax it is made again from maxima and sums."""
    if softmax is None:
        check(
            logits_max is not None and sum_exp_logits is not None,
            "without softmax, the maxima and sums are needed",
        )
        logits = input.float() @ weight.float().t()
        softmax = (logits - logits_max[:, None]).exp() / sum_exp_logits[:, None]
    bits = (target_mask[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1).flatten()[: grad.numel()]
    inner = softmax.clone()
    inner[torch.arange(grad.numel()), masked_target.long()] -= 1.0 - bits.float()
    inner = inner * grad[:, None]
    return (inner @ weight.float()).to(input.dtype), (inner.t() @ input.float()).to(weight.dtype)
