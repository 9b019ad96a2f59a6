"""LoRA's linear layer with a backward pass that saves and recomputes the least.

y = x W^T + b + s B(A(drop(x))) keeps x (shared with every layer that reads it), A(drop(x)) and one number for the
mask; nothing is kept for the frozen weight. Adapters in fp32 over a base in a shorter type are multiplied in the base's
type, as autocast does, and get their gradient in fp32.

Shapes: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.models.dropout import draw_seed, drop_, exact_probability


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        p: float,
    ) -> Tensor:
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        seed = draw_seed() if p > 0 else 0
        dropped_TI = drop_(x_TI.clone(), p, seed) if p > 0 else x_TI
        reduced_TR = torch.mm(dropped_TI, a.t())
        y_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
        y_TO.addmm_(reduced_TR, b.t(), alpha=scale)
        ctx.save_for_backward(x_TI, weight_OI, a, b, reduced_TR)
        ctx.scale, ctx.p, ctx.seed, ctx.dtypes = scale, p, seed, (a_RI.dtype, b_OR.dtype)
        return y_TO

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TI, weight_OI, a, b, reduced_TR = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_a, needs_b = ctx.needs_input_grad[:5]
        grad_x = grad_weight = grad_bias = grad_a = grad_b = None
        grad_reduced_TR = torch.mm(grad_TO, b).mul_(ctx.scale)
        if needs_x:
            grad_x = torch.mm(grad_TO, weight_OI)
            if ctx.p > 0:
                grad_x += drop_(torch.mm(grad_reduced_TR, a), ctx.p, ctx.seed)
            else:
                grad_x.addmm_(grad_reduced_TR, a)
        if needs_a:
            dropped_TI = drop_(x_TI.clone(), ctx.p, ctx.seed) if ctx.p > 0 else x_TI
            grad_a = torch.mm(grad_reduced_TR.t(), dropped_TI).to(ctx.dtypes[0])
        if needs_b:
            grad_b = torch.mm(reduced_TR.t(), grad_TO).t().to(ctx.dtypes[1]).mul_(ctx.scale)
        if needs_weight:
            grad_weight = torch.mm(grad_TO.t(), x_TI)
        if needs_bias:
            grad_bias = grad_TO.sum(0)
        return grad_x, grad_weight, grad_bias, grad_a, grad_b, None, None


def lora_linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    *,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Return x W^T + b + scale B(A(drop(x))) for x [..., I]."""
    p = exact_probability(dropout_p)
    y_TO = _LoraLinear.apply(
        x.reshape(-1, x.shape[-1]), weight_OI, bias_O, a_RI, b_OR, scale / (1 - p) if p > 0 else scale, p
    )
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


def plain_adapter(layer: Any) -> str | None:
    """Return the name of the one adapter that `lora_linear` can compute for a layer of peft, or None."""
    if layer.disable_adapters or layer.merged or type(layer.get_base_layer()) is not nn.Linear:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or layer.lora_variant.get(active[0]) is not None:
        return None
    name = active[0]
    parts = (layer.lora_A[name], layer.lora_B[name])
    if any(type(part) is not nn.Linear or part.bias is not None for part in parts):
        return None
    return name if isinstance(layer.lora_dropout[name], (nn.Dropout, nn.Identity)) else None


def apply_fast_lora(model: nn.Module) -> int:
    """Let peft's plain LoRA layers compute with `lora_linear`, in place; return how many.

    Layers of another kind (DoRA, quantised bases, several adapters, biases of adapters) keep peft's forward.
    """
    from peft.tuners.lora import Linear

    count = 0
    for module in model.modules():
        if type(module) is Linear and plain_adapter(module) is not None:
            module.__class__ = _fast_class()
            count += 1
    return count


def lora_layers(model: nn.Module) -> int:
    """Return the number of LoRA layers of peft in a model, of whatever kind."""
    from peft.tuners.lora import LoraLayer

    return sum(isinstance(module, LoraLayer) for module in model.modules())


def _fast_class() -> Any:
    """Return the subclass of peft's layer; made on first use, as importing peft costs seconds."""
    if _FAST:
        return _FAST[0]
    from peft.tuners.lora import Linear

    class FastLoraLinear(Linear):
        """peft's layer with another forward; saving, merging and switching adapters stay peft's."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            name = None if args or kwargs or torch.is_autocast_enabled(x.device.type) else plain_adapter(self)
            base: Any = self.get_base_layer()
            if name is None or x.dtype != base.weight.dtype:
                return super().forward(x, *args, **kwargs)
            dropout = self.lora_dropout[name]
            parts: Any = self.lora_A[name], self.lora_B[name]
            return lora_linear(
                x,
                base.weight,
                base.bias,
                parts[0].weight,
                parts[1].weight,
                scale=self.scaling[name],
                dropout_p=dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
            )

    _FAST.append(FastLoraLinear)
    return FastLoraLinear


_FAST: list[type] = []
