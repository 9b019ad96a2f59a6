"""Plain LoRA on a decoder of our own: the names, the start and the files are peft's, without importing it.

Whatever is not plain (DoRA, other starts, biases, adapters of embeddings, modules trained whole) is peft's, on a model
of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.models.decoder import Decoder, DecoderConfig
from swiftlet.models.dropout import active_p
from swiftlet.models.lora_linear import PLAIN_PARTS, Adapter, Layer, lora_linear

NAME = "default"


@dataclass(frozen=True)
class LoraFields:
    """What adapter_config.json says; names as in peft."""

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: list[str]
    use_rslora: bool = False
    init_lora_weights: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that any version of peft reads."""
        fixed = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "modules_to_save": None}
        return fixed | {"fan_in_fan_out": False, "use_dora": False} | vars(self)


def are_plain_targets(names: Iterable[str]) -> bool:
    """Return whether our own adapters do for the modules of these names: linear layers, but not the head."""
    return not any("embed" in name.lower() or name == "lm_head" for name in names)


class LoraLinear(nn.Module):
    """A linear layer with an adapter, attributes as in peft's."""

    disable_adapters = merged = False
    active_adapters = (NAME,)

    def __init__(self, base: nn.Linear, fields: LoraFields) -> None:
        super().__init__()
        self.base_layer = base
        dropout = nn.Dropout(fields.lora_dropout) if fields.lora_dropout > 0 else nn.Identity()
        self.lora_dropout = nn.ModuleDict({NAME: dropout})
        self.lora_A = nn.ModuleDict({NAME: nn.Linear(base.in_features, fields.r, bias=False)})
        self.lora_B = nn.ModuleDict({NAME: nn.Linear(fields.r, base.out_features, bias=False)})
        divisor = math.sqrt(fields.r) if fields.use_rslora else fields.r
        self.scaling = {NAME: fields.lora_alpha / divisor}
        self.lora_variant: dict[str, Any] = {}
        self.parts, self.number = PLAIN_PARTS, 0
        self._start()
        self.train(base.training)

    @torch.no_grad()
    def _start(self) -> None:
        """Draw A and set B to 0. Source: peft's LoraLayer.reset_lora_parameters, for the same numbers of a seed."""
        a, b, base = self.lora_A[NAME], self.lora_B[NAME], self.base_layer.weight
        assert isinstance(a, nn.Linear)
        assert isinstance(b, nn.Linear)
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        nn.init.zeros_(b.weight)
        for part in (a, b):  # through the base's type, as peft does; trained in fp32
            part.weight.data = part.weight.data.to(base.device, base.dtype).float()

    def get_base_layer(self) -> nn.Module:
        """Return the layer without the adapter."""
        return self.base_layer

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b + scale B(A(drop(x)))."""
        base, p = self.base_layer, active_p(self.lora_dropout[NAME])
        a, b = self.lora_A[NAME].weight, self.lora_B[NAME].weight
        adapter = Adapter(a, b, self.scaling[NAME], p)  # type: ignore[arg-type]
        return lora_linear(x, Layer(base.weight, base.bias, adapter, self.number), parts=self.parts)  # type: ignore[arg-type]


class AdaptedDecoder(nn.Module):
    """A decoder with adapters in it; weights have the names that peft gives them."""

    def __init__(self, model: Decoder, fields: LoraFields) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        self.peft_config = {NAME: fields}

    def get_base_model(self) -> Decoder:
        """Return the decoder, the adapters in it."""
        model = self.base_model.model
        assert isinstance(model, Decoder)
        return model

    @property
    def config(self) -> DecoderConfig:
        """Return the decoder's sizes."""
        return self.get_base_model().config


def adapt(model: Decoder, fields: LoraFields) -> AdaptedDecoder:
    """Freeze a decoder and put adapters into the linear layers that `fields` names, drawn from torch's generator."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if any(name == target or name.endswith(f".{target}") for target in fields.target_modules):
            parent, _, child = name.rpartition(".")
            assert isinstance(module, nn.Linear)
            setattr(model.get_submodule(parent), child, LoraLinear(module, fields))
    return AdaptedDecoder(model, fields)


def saved_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapters' tensors out of a state by the names in an adapter's file."""
    return {name.replace(f".{NAME}.", "."): tensor for name, tensor in state.items() if ".lora_" in name}


@torch.no_grad()
def set_tensors(model: AdaptedDecoder, tensors: Mapping[str, Tensor]) -> None:
    """Set the adapters from tensors that are known to fit."""
    for name, place in saved_tensors(model.state_dict()).items():
        place.copy_(tensors[name])
