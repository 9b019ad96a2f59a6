"""The fused cross entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import gradients, kernel


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
