"""The fused operators of a run: what the device has, the user left on, and the trust gate let pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from swiftlet import log
from swiftlet.device.kernels import PLAIN, Kernel
from swiftlet.device.spec import Device
from swiftlet.device.trust import (
    Case,
    attention_case,
    default_memory,
    rms_norm_case,
    rotary_case,
    swiglu_case,
    trusted_kernels,
    without,
)

TRIED_SAMPLES = 8
PLAIN_EPSILON = 1e-6


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
    chosen = trusted_kernels(device, cases(config, lengths), dtype, memory=default_memory())
    chosen = without(chosen, attention=attention != "false", others=others != "false")
    fused = [name for name, kernel in chosen.items() if kernel is not PLAIN[name]]
    log.info(f"fused operators of {device.name}: {', '.join(fused) or 'none'}")
    return chosen


def cases(config: Any, lengths: Sequence[int]) -> list[Case]:
    """Return the calls that a model makes of each operator, with boundaries like those of its samples."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    epsilon = getattr(text, "rms_norm_eps", None) or PLAIN_EPSILON
    boundaries = [0, *accumulate(int(length) for length in lengths[:TRIED_SAMPLES])]
    scalar = getattr(text, "query_pre_attn_scalar", None)
    scale = scalar**-0.5 if scalar else None
    softcap = getattr(text, "attn_logit_softcapping", None)
    windows = {None, _window(text)}
    return [
        *(
            attention_case(heads, kv_heads, head_dim, boundaries, scale=scale, window=window, softcap=softcap)
            for window in sorted(windows, key=bool)
        ),
        rms_norm_case(text.hidden_size, epsilon),
        *([rms_norm_case(head_dim, epsilon)] if head_dim != text.hidden_size else []),
        *(rotary_case(number, head_dim) for number in sorted({heads, kv_heads})),
        swiglu_case(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
    ]


def _window(text: Any) -> int | None:
    """Return how far back some layer sees, if any is limited."""
    kinds = getattr(text, "layer_types", None)
    is_limited = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    return getattr(text, "sliding_window", None) if is_limited else None
