"""Fused operators of NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from swiftlet.device.kernels import PLAIN, packed_attention

# Limits of the flash kernels behind varlen_attn. Source: torch.nn.attention.varlen.
LARGEST_HEAD = 256
HALVES = (torch.bfloat16, torch.float16)


@lru_cache(maxsize=8)
def _on_device(cu_seqlens: tuple[int, ...], device: torch.device) -> Tensor:
    # All layers of a forward pass share one copy, and no layer waits for it.
    return torch.tensor(cu_seqlens, dtype=torch.int32).pin_memory().to(device, non_blocking=True)


def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Sequence[int],
    scale: float,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return attention of packed samples in one call of the flash kernel, where it takes these tensors.

    Source: torch.nn.attention.varlen.varlen_attn; its window (left, right) counts the neighbours, so a window of W
    tokens is (W - 1, 0).
    """
    if softcap or q_THD.dtype not in HALVES or q_THD.shape[-1] > LARGEST_HEAD:
        return packed_attention(
            q_THD, k_TKD, v_TKD, cu_seqlens, scale, causal=causal, window=window, softcap=softcap
        )
    lengths = _on_device(tuple(cu_seqlens), q_THD.device)
    longest = max(end - start for start, end in pairwise(cu_seqlens))
    left = window - 1 if window else -1
    right = 0 if causal else left
    out = varlen_attn(
        q_THD,
        k_TKD,
        v_TKD,
        lengths,
        lengths,
        longest,
        longest,
        scale=scale,
        window_size=(left, right),
        enable_gqa=q_THD.shape[1] != k_TKD.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def fused_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return torch's own fused norm. Source: torch.nn.functional.rms_norm."""
    return functional.rms_norm(x, weight_D.shape, weight_D.to(x.dtype), eps)


def cuda_kernels() -> dict[str, Callable[..., Any]]:
    """Return the operators of a GPU; rotary and SwiGLU have no kernel in torch."""
    return {**PLAIN, "attention": varlen_attention, "rms_norm": fused_rms_norm}
