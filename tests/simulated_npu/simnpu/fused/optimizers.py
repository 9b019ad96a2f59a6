"""Update steps of NpuFusedAdam and NpuFusedAdamW; overflow flags of the gradient scaler."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, kernel


@kernel("npu_apply_adam_w.out")
def apply_adam_w(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: Tensor,
    max_grad_norm: Tensor | None,
    amsgrad: bool | None,
    maximize: bool | None,
    out: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """In place on out = [parameter, first moment, second moment]; the powers are beta ** (step - 1).

    With amsgrad `max_grad_norm` is what its name does not say: the largest second moments so far.
    """
    parameter, first, second = out
    gradient = -grad if maximize else grad
    beta1_power, beta2_power = beta1_power * beta1, beta2_power * beta2
    parameter.mul_(1 - lr * weight_decay)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    largest = second
    if amsgrad:
        largest = max_grad_norm.copy_(torch.maximum(max_grad_norm, second))
    denominator = (largest / (1 - beta2_power)).sqrt_().add_(epsilon)
    parameter.addcdiv_(first, denominator, value=-lr / (1 - beta1_power))
    return parameter, first, second


@kernel("npu_apply_adam.out")
def apply_adam(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: Tensor,
    use_nesterov: bool | None,
    out: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """In place on out = [parameter, first moment, second moment]; the powers are beta ** step."""
    if use_nesterov:
        raise NotSimulated("npu::npu_apply_adam: use_nesterov")
    parameter, first, second = out
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    rate = lr * (1 - beta2_power) ** 0.5 / (1 - beta1_power)
    parameter.addcdiv_(first, second.sqrt().add_(epsilon), value=-rate)
    return parameter, first, second


@kernel("_amp_foreach_non_finite_check")
def non_finite_check(scaled_grads: list[Tensor]) -> bool:
    return any(not bool(torch.isfinite(gradient).all()) for gradient in scaled_grads)


@kernel("npu_alloc_float_status")
def alloc_float_status(input: Tensor) -> Tensor:
    """Eight zeros: the device's overflow register, never set here."""
    return torch.zeros(8)


@kernel("npu_get_float_status", "npu_clear_float_status")
def float_status(input: Tensor) -> Tensor:
    return input.zero_()


@kernel("npu_bert_apply_adam.out")
def bert_apply_adam(
    lr: float, beta1: float, beta2: float, epsilon: float, grad: Tensor, max_grad_norm: float, global_grad_norm: float,
    weight_decay: float, step_size: float | None, adam_mode: int, out: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """In place on out = [parameter, first moment, second moment]: Adam without bias correction, as BERT was trained.

    The gradient is cut to the largest norm where that is positive and the norm above it.
    """
    if step_size is not None or adam_mode != 0:
        raise NotSimulated("npu_bert_apply_adam: the simulator knows adam_mode 0 without step_size")
    parameter, first, second = out
    if 0 < max_grad_norm < global_grad_norm:
        grad = grad * (max_grad_norm / global_grad_norm)
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    parameter.sub_(lr * (first / second.sqrt().add_(epsilon) + weight_decay * parameter))
    return parameter, first, second
