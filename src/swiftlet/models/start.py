"""Adapters that start from the base's own directions (PiSSA, OLoRA): how they are saved and taken up again.

Such a start A0, B0 is subtracted from the base while training: W' = W - s B0 A0. Saved is the difference to W,
s (B A - B0 A0), as a plain adapter of twice the rank, [A; A0] and [B, -B0]: it fits the original base and any program.
Training goes on from its two halves, with W' computed in the same way again, so it continues bit for bit.

Shapes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

START_A, START_B = "start_A", "start_B"
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"


def lora_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each linear layer with an adapter."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer") and "default" in module.lora_A:
            yield name, module


def residual(weight: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, *, is_transposed: bool) -> Tensor:
    """Return W - s B A in the type of W, computed in fp32; W is [O, I], or [I, O] where transposed."""
    product_OI = b_OR.float() @ a_RI.float() * scale
    return (weight.float() - (product_OI.T if is_transposed else product_OI)).to(weight.dtype)


def keep_start(model: nn.Module, originals: Mapping[int, Tensor]) -> None:
    """Remember the start of each adapter as buffers beside it, and set the base to what is left of the original."""
    for _, module in lora_modules(model):
        base = module.base_layer
        a_RI = module.lora_A["default"].weight.detach().clone()
        b_OR = module.lora_B["default"].weight.detach().clone()
        _set(module, a_RI, b_OR, originals[id(base)])


def _set(module: Any, a_RI: Tensor, b_OR: Tensor, original: Tensor) -> None:
    base, scale = module.base_layer, module.scaling["default"]
    base.weight.data = residual(original, a_RI, b_OR, scale, is_transposed=module.fan_in_fan_out)
    module.register_buffer(START_A, a_RI, persistent=False)
    module.register_buffer(START_B, b_OR, persistent=False)


def has_start(model: nn.Module) -> bool:
    """Return whether the adapters of a model were taken from its base."""
    return any(hasattr(module, START_A) for _, module in lora_modules(model))


def with_start(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's tensors as they are saved: of twice the rank, relative to the original base."""
    result = dict(tensors)
    for name, module in lora_modules(model):
        a_RI, b_OR = getattr(module, START_A), getattr(module, START_B)
        for key, joined in ((name + LORA_A, (a_RI, 0)), (name + LORA_B, (-b_OR, 1))):
            start, dim = joined
            result[key] = torch.cat([tensors[key], start.to(tensors[key])], dim=dim)
    return result


def take_up_start(model: nn.Module, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Set the base as it was while training and return the trained halves of saved tensors of twice the rank."""
    result = dict(tensors)
    for name, module in lora_modules(model):
        joined_a, joined_b = tensors[name + LORA_A], tensors[name + LORA_B]
        original = module.base_layer.weight.data
        a_RI, b_OR = (
            part.to(original.device).contiguous() for part in (joined_a[rank:], -joined_b[:, rank:])
        )
        _set(module, a_RI, b_OR, original)
        result[name + LORA_A] = joined_a[:rank].contiguous()
        result[name + LORA_B] = joined_b[:, :rank].contiguous()
    return result
