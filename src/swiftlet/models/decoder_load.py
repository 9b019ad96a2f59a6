"""The weights of a folder into a decoder of our own, each read straight to its place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from swiftlet.models.decoder import Decoder, decoder_class, frequencies
from swiftlet.models.decoder_config import DecoderConfig


def load_decoder(
    folder: Path,
    config: DecoderConfig,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Decoder:
    """Return the decoder of a folder in evaluation mode.

    Args:
        tensors: the weights by their published names, which are known to fit; taken one by one.
    """
    config._name_or_path = str(folder)
    with torch.device("meta"):
        model = decoder_class(config.model_type)(config)
    model.model.register_buffer(
        "inv_freq", frequencies(config.rope, config.head_dim).to(device), persistent=False
    )
    places = {
        f"{prefix}.{name}": (module, name)
        for prefix, module in model.named_modules()
        for name in module._parameters
    }
    for key, value in tensors:
        if key in places:
            module, name = places[key]
            _put(module, name, value, dtype, device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def _put(module: nn.Module, name: str, value: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Set a parameter; on a CPU it gets aligned memory of its own, see `load._own_memory`."""
    is_mapped = device.type == "cpu" and value.dtype == dtype
    own = value.clone(memory_format=torch.contiguous_format) if is_mapped else value.to(device, dtype)
    module._parameters[name] = nn.Parameter(own)
