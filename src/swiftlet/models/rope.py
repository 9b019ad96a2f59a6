"""Rotations of transformers whose frequencies follow the longest position of a pass: dynamic and longrope.

Such a pass is right for one length alone. Beside a longer sample, or for dynamic after one, a sample is rotated as if
it were as long: its loss and its answer would depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def follows_length(model: nn.Module) -> bool:
    """Return whether a sample's rotation depends on the longest sample beside it."""
    return any(
        _is_dynamic(kind) or kind == "longrope" for rotary in model.modules() for _, kind in _kinds(rotary)
    )


def forget_lengths(model: nn.Module) -> None:
    """Let each pass of a dynamic rotation start from the frequencies of a short sample, not of the longest so far."""
    for module in model.modules():
        if any(_is_dynamic(kind) for _, kind in _kinds(module)):
            module.register_forward_pre_hook(_forget)


def _kinds(module: nn.Module) -> list[tuple[str, str]]:
    """Return the prefix of the names of a rotation's frequencies and its rope_type, one for each type of layer."""
    found = getattr(module, "rope_type", None)
    if isinstance(found, dict):
        return [(f"{layer}_", kind) for layer, kind in found.items()]
    return [("", found)] if isinstance(found, str) else []


def _is_dynamic(kind: str) -> bool:
    return "dynamic" in kind


def _forget(rotary: Any, _: Any) -> None:
    for prefix, kind in _kinds(rotary):
        if _is_dynamic(kind):
            frequencies = getattr(rotary, f"{prefix}inv_freq")
            setattr(
                rotary,
                f"{prefix}inv_freq",
                getattr(rotary, f"{prefix}original_inv_freq").to(frequencies.device),
            )
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
