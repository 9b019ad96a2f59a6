"""How many parameters a model has by its config.json alone: it is built without memory, of whatever architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from swiftlet.errors import SwiftletError, first_line
from swiftlet.models.load import build_config, missing_package
from swiftlet.models.safety import CONFIG, read_config


def count_parameters(folder: Path) -> int | None:
    """Return the parameters of the model that config.json describes; None where only the folder's own code has it.

    Raises:
        SwiftletError: the config.json does not describe such a model, or a package that it needs is missing.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    raw = read_config(folder)
    if raw["model_type"] not in CONFIG_MAPPING:
        return None
    config, model_class = build_config(folder, raw, trust_remote_code=False)
    model = _build(folder, config, model_class)
    return sum(parameter.numel() for parameter in model.parameters())


def _build(folder: Path, config: Any, model_class: Any) -> Any:
    """Return a model on the meta device, where its matrices take no memory.

    Raises:
        SwiftletError: its sizes do not go together, or it needs a package that is missing.
    """
    try:
        with torch.device("meta"):
            return model_class(config)
    except ImportError as error:
        raise missing_package(model_class, error) from error
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        reason = (
            f"{folder / CONFIG} describes no {model_class.__name__} that can be built: {first_line(error)}"
        )
        raise SwiftletError(reason, "get config.json again from where the model came") from error
