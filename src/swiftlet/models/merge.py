"""An adapter into its base: in fp32, one layer at a time, back to the base's type at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from swiftlet.models.adapter import adapted_weight, quiet_peft

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Add the adapter to the weights it belongs to and return the plain model; the adapter is gone afterwards.

    A head that shares its matrix with the embedding gets a copy of its own where one of them is changed.
    """
    from peft.tuners.lora import LoraLayer

    plain: Any = model.get_base_model()
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    _untie(plain, layers)
    with quiet_peft():
        for layer in layers:
            weight = adapted_weight(layer)
            dtype = weight.dtype
            weight.data = weight.data.float()
            layer.merge()
            weight.data = weight.data.to(dtype)
        merged: Any = model.merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(False)
    return merged


def _untie(plain: Any, layers: list[Any]) -> None:
    head, embedding = (
        module.get_base_layer() if module in layers else module
        for module in (plain.get_output_embeddings(), plain.get_input_embeddings())
    )
    is_changed = any(adapted_weight(layer) is head.weight for layer in layers)
    if is_changed and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        plain.config.tie_word_embeddings = False
