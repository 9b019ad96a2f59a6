"""Which LoRA layers of peft compute with `lora_linear`, and how they are changed in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.models.decoder import Attention
from swiftlet.models.decoder_lora import AdaptedDecoder, LoraLinear
from swiftlet.models.dropout import active_p
from swiftlet.models.lora_linear import PLAIN_PARTS, Adapter, Layer, Parts, lora_linear, lora_linears
from swiftlet.models.recompute import Recompute

# Layers that read one input have one mask of dropout, and one number, whether or not they are computed together.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


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
    dropout = layer.lora_dropout[name]
    is_known = isinstance(dropout, nn.Identity) or (isinstance(dropout, nn.Dropout) and dropout.p < 1)
    return name if is_known else None


def active_layer(layer: Any, x: Tensor) -> Layer | None:
    """Return what `lora_linear` needs to compute a layer for `x`, or None where the layer itself must."""
    if not isinstance(getattr(layer, "lora_A", None), nn.ModuleDict):
        return None
    name = plain_adapter(layer)
    base = layer.get_base_layer()
    if name is None or x.dtype != base.weight.dtype or torch.is_autocast_enabled(x.device.type):
        return None
    p = active_p(layer.lora_dropout[name])
    adapter = Adapter(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], p)
    return Layer(base.weight, base.bias, adapter, getattr(layer, "number", 0))


def project_together(x: Tensor, modules: Sequence[Any], again: Recompute | None = None) -> list[Tensor]:
    """Return what each module makes of x; those with an adapter that `lora_linears` knows in one go.

    With `again`, which must be active, the last of these is made again in the backward pass.
    """
    layers = [active_layer(module, x) for module in modules]
    known = [layer for layer in layers if layer is not None]
    if len({layer.adapter.dropout_p for layer in known}) != 1:
        return [module(x) for module in modules]
    parts = next(
        getattr(module, "parts", PLAIN_PARTS) for module, layer in zip(modules, layers, strict=True) if layer
    )
    made = iter(lora_linears(x, known, parts=parts, again=again))
    return [module(x) if layer is None else next(made) for module, layer in zip(modules, layers, strict=True)]


def apply_fast_lora(model: nn.Module, parts: Parts = PLAIN_PARTS) -> int:
    """Let peft's plain LoRA layers compute with `lora_linear`, in place; return how many.

    `parts` are the elementwise steps of the device.

    Layers of another kind (DoRA, quantised bases, several adapters, biases of adapters) keep peft's forward.
    """
    numbers: dict[tuple[str, str], int] = {}
    count = 0
    for name, module in model.named_modules():
        if isinstance(module, Attention) and isinstance(model, AdaptedDecoder):
            module.project = project_together
        if not _made_fast(module):
            continue
        parent, _, child = name.rpartition(".")
        group = next((group[0] for group in TOGETHER if child in group), child)
        module.parts, module.number = parts, numbers.setdefault((parent, group), len(numbers))
        adapter = plain_adapter(module)
        if parts.copies is not None and adapter is not None:
            parts.copies.add(module, adapter)
        count += 1
    return count


def _made_fast(module: Any) -> bool:
    """Return whether a module is, or by now is, a LoRA layer that computes with `lora_linear`."""
    if isinstance(module, LoraLinear):
        return True
    if not isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
        return False
    from peft.tuners.lora import Linear

    if type(module) is not Linear or plain_adapter(module) is None:
        return False
    module.__class__ = _fast_class()
    return True


def lora_layers(model: nn.Module) -> int:
    """Return the number of LoRA layers in a model, of whatever kind."""
    if isinstance(model, AdaptedDecoder):
        return sum(isinstance(module, LoraLinear) for module in model.modules())
    from peft.tuners.lora import LoraLayer

    return sum(isinstance(module, LoraLayer) for module in model.modules())


@cache
def _fast_class() -> Any:
    """Return the subclass of peft's layer; made on first use, as importing peft costs seconds."""
    from peft.tuners.lora import Linear

    class FastLoraLinear(Linear):
        """peft's layer with another forward; saving, merging and switching adapters stay peft's."""

        parts: Parts
        number: int

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            layer = None if args or kwargs else active_layer(self, x)
            if layer is None:
                return super().forward(x, *args, **kwargs)
            return lora_linear(x, layer, parts=self.parts)

    return FastLoraLinear
