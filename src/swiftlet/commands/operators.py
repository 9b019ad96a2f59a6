"""The fused operators of a run: what the device has, the user left on, and the trust gate let pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from swiftlet import log
from swiftlet.device.kernels import PLAIN, AttentionRules, DeviceAttention, Kernel
from swiftlet.device.spec import Device
from swiftlet.device.trials import default_memory
from swiftlet.device.trust import (
    Case,
    attention_case,
    dropout_case,
    rms_norm_case,
    rotary_case,
    swiglu_case,
    trusted_kernels,
    without,
)

TRIED_SAMPLES = 8
PLAIN_EPSILON = 1e-6
EPSILONS = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon")
WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")


def choose_kernels(
    device: Device, config: Any, lengths: Sequence[int], dtype: torch.dtype, *, attention: str, others: str
) -> Mapping[str, Kernel]:
    """Return the fused operators of a run by name; where there is none the plain one runs.

    Args:
        config: settings of the model as transformers reads them.
        lengths: tokens of some samples of the run.
        attention: `--use_flash_attn`: AUTO or true for the fused one where it passes, false for the plain one.
        others: the same for norm, rotary and SwiGLU: `--fused_operators`.
    """
    if not device.kernels:
        for flag, asked in (("--use_flash_attn", attention), ("--fused_operators", others)):
            if asked == "true":
                log.info(f"{flag} true: {device.name} has no fused operators of its own, the plain ones run")
        return {}
    tried = cases(config, lengths)
    chosen = trusted_kernels(device, tried, dtype, memory=default_memory())
    chosen = without(chosen, attention=attention != "false", others=others != "false")
    fused = [
        name
        for name, kernel in chosen.items()
        if kernel is not PLAIN[name] and _computes(kernel, tried, dtype)
    ]
    log.info(f"fused operators of {device.name}: {', '.join(fused) or 'none'}")
    return chosen


def _computes(kernel: Kernel, tried: Sequence[Case], dtype: torch.dtype) -> bool:
    """Return whether an operator computes what it is asked; a DeviceAttention leaves some calls to the plain one."""
    if not isinstance(kernel, DeviceAttention):
        return True
    calls = [case for case in tried if case.operator == "attention"]
    return all(kernel.is_fit(dtype, one.shapes[0][-1]) and one.arguments[1].is_plain for one in calls)


def cases(config: Any, lengths: Sequence[int]) -> list[Case]:
    """Return the calls that a model makes of each operator, with boundaries like those of its samples.

    An operator of which a configuration says too little has no case, and so stays plain.
    """
    text = config.get_text_config()
    heads, hidden = getattr(text, "num_attention_heads", None), text.hidden_size
    epsilon = next((value for name in EPSILONS if (value := getattr(text, name, None))), PLAIN_EPSILON)
    found = [swiglu_case(width) for width in sorted(_whole(getattr(text, name, None) for name in WIDTHS))]
    found.append(dropout_case(hidden))
    if not isinstance(heads, int):  # no attention, or of another number in each layer
        return [*found, rms_norm_case(hidden, epsilon)]
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    boundaries = [0, *accumulate(int(length) for length in lengths[:TRIED_SAMPLES])]
    softcap = getattr(text, "attn_logit_softcapping", None)
    rules = AttentionRules(_scale(text) or head_dim**-0.5, softcap=softcap)
    found += [
        attention_case(heads, kv_heads, head_dim, boundaries, rules._replace(window=window))
        for window in sorted({None, _window(text)}, key=bool)
    ]
    normed = {hidden, head_dim, heads * head_dim, kv_heads * head_dim}
    found += [rms_norm_case(width, epsilon) for width in sorted(normed)]
    return found + [rotary_case(number, head_dim) for number in sorted({heads, kv_heads})]


def _whole(values: Iterable[Any]) -> set[int]:
    return {value for value in values if isinstance(value, int)}


def _scale(text: Any) -> float | None:
    """Return what scores are multiplied by, None for one over the root of a head's width."""
    scalar = getattr(text, "query_pre_attn_scalar", None)
    return scalar**-0.5 if scalar else getattr(text, "attention_multiplier", None)


def _window(text: Any) -> int | None:
    """Return how far back some layer sees, if any is limited."""
    kinds = getattr(text, "layer_types", None)
    is_limited = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    return getattr(text, "sliding_window", None) if is_limited else None
