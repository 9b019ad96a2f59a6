"""How many parameters a model has by its config.json alone: it is built without memory, of whatever architecture."""

from __future__ import annotations

from pathlib import Path

import torch

from swiftlet.models.load import build_config
from swiftlet.models.safety import read_config


def count_parameters(folder: Path) -> int | None:
    """Return the parameters of the model that config.json describes; None where only the folder's own code has it.

    Raises:
        SwiftletError: the config.json does not describe such a model.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    raw = read_config(folder)
    if raw["model_type"] not in CONFIG_MAPPING:
        return None
    config, model_class = build_config(folder, raw, trust_remote_code=False)
    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())
