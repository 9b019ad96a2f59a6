"""A linear layer whose backward pass keeps its parameter itself, for engines that take a parameter's memory away.

torch's own keeps a view W^T for the backward pass, and with it the gathered memory of a whole weight that ZeRO-3 has
released in between: after a forward pass each rank would hold the whole model. DeepSpeed's own function for this keeps
the input too where the weight is frozen, as nearly all are with adapters.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


class _LeafLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI if ctx.needs_input_grad[1] else None, weight_OI)
        return torch.nn.functional.linear(x_TI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            torch.mm(grad_TO, weight_OI) if needs_x else None,
            torch.mm(grad_TO.t(), x_TI) if needs_weight else None,
            grad_TO.sum(0) if needs_bias else None,
        )


def leaf_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x W^T + b for x [..., I]; for the backward pass it keeps the parameter, and x only if W is trained."""
    y_TO: Tensor = _LeafLinear.apply(x.reshape(-1, x.shape[-1]), weight_OI, bias_O)
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    return leaf_linear(x, self.weight, self.bias)


def apply_leaf_linear(model: nn.Module, parameters: Collection[nn.Parameter]) -> int:
    """Let plain linear layers over these parameters compute with `leaf_linear`, in place; return how many."""
    count, known = 0, {id(parameter) for parameter in parameters}
    for module in model.modules():
        if type(module) is nn.Linear and id(module.weight) in known:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
            count += 1
    return count
