"""The weights of a folder into a decoder of our own, each read straight to its place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from swiftlet.errors import SwiftletError
from swiftlet.models.decoder import Decoder, decoder_class, frequencies
from swiftlet.models.decoder_config import DecoderConfig
from swiftlet.models.safety import weight_files


def load_decoder(folder: Path, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Return the decoder of a folder whose weights are known to fit, in evaluation mode.

    Raises:
        SwiftletError: a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

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
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for key in file.keys():  # noqa: SIM118
                    if key in places:
                        module, name = places[key]
                        _put(module, name, file.get_tensor(key), dtype, device)
        except SafetensorError as error:
            raise SwiftletError(f"{path} cannot be read: {error}", "download the file again") from error
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def _put(module: nn.Module, name: str, value: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Set a parameter; on a CPU it gets aligned memory of its own, see `load._own_memory`."""
    is_mapped = device.type == "cpu" and value.dtype == dtype
    own = value.clone(memory_format=torch.contiguous_format) if is_mapped else value.to(device, dtype)
    module._parameters[name] = nn.Parameter(own)
