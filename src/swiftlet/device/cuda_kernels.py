"""Fused operators of NVIDIA GPUs: those of torch, and those of triton_kernels.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from triton.errors import TritonError

from swiftlet.device import triton_kernels
from swiftlet.device.kernels import (
    AttentionRules,
    DeviceAttention,
    DeviceBoundaries,
    Kernel,
    left_to_plain,
    plain_attention,
    say_plain,
)

try:
    from torch.nn.attention.varlen import varlen_attn
except ModuleNotFoundError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

# Limits of the flash kernels behind varlen_attn. Source: torch.nn.attention.varlen.
LARGEST_HEAD = 256
HALVES = (torch.bfloat16, torch.float16)
# Torch 2.12 and later want to be told of fewer key heads than query heads; before, the kernel saw it by itself.
HAS_GROUPS = varlen_attn is not None and "enable_gqa" in signature(varlen_attn).parameters


@lru_cache(maxsize=8)
def _on_device(cu_seqlens: tuple[int, ...], device: torch.device) -> Tensor:
    # All layers of a forward pass share one copy, and no layer waits for it.
    return torch.tensor(cu_seqlens, dtype=torch.int32).pin_memory().to(device, non_blocking=True)


def is_fit(dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether the flash kernel takes tensors of this type and size of head."""
    return dtype in HALVES and head_dim <= LARGEST_HEAD


def _unfit(query_QTD: Tensor, rules: AttentionRules) -> str | None:
    if not is_fit(query_QTD.dtype, query_QTD.shape[-1]):
        kind, width = str(query_QTD.dtype).removeprefix("torch."), query_QTD.shape[-1]
        return f"the flash kernel takes bf16 and fp16 and heads up to {LARGEST_HEAD}, not {kind} and {width}"
    return "the flash kernel has no dropout of weights" if rules.dropout_p > 0 else None


def varlen_attention(
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: Sequence[int],
    rules: AttentionRules,
) -> Tensor:
    """Return attention of packed samples in one call of the flash kernel, where it takes these tensors.

    Source: torch.nn.attention.varlen.varlen_attn; its window (left, right) counts the neighbours, so a window of W
    tokens is (W - 1, 0).

    Raises:
        RuntimeError: this torch has no such kernel; the trust gate says so and takes the plain operator.
    """
    reason = left_to_plain(query_QTD, value_KTD, rules) or _unfit(query_QTD, rules)
    if reason is not None:
        assert not isinstance(cu_seqlens, DeviceBoundaries)
        say_plain(reason)
        return plain_attention(query_QTD, key_KTD, value_KTD, cu_seqlens, rules)
    if varlen_attn is None:
        raise RuntimeError(
            f"torch {torch.__version__} has no torch.nn.attention.varlen, which came with 2.10"
        )
    if isinstance(cu_seqlens, DeviceBoundaries):
        lengths, longest = cu_seqlens.on_device, cu_seqlens.longest
    else:
        lengths = _on_device(tuple(cu_seqlens), query_QTD.device)
        longest = max(end - start for start, end in pairwise(cu_seqlens))
    options: dict[str, Any] = {"enable_gqa": query_QTD.shape[0] != key_KTD.shape[0]} if HAS_GROUPS else {}
    out = varlen_attn(
        query_QTD.transpose(0, 1),
        key_KTD.transpose(0, 1),
        value_KTD.transpose(0, 1),
        lengths,
        lengths,
        longest,
        longest,
        scale=rules.scale,
        window_size=(rules.window - 1 if rules.window and rules.window < longest else -1, 0),
        **options,
    )
    assert isinstance(out, Tensor)
    return out


def fused_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return torch's own fused norm. Source: torch.nn.functional.rms_norm."""
    return functional.rms_norm(x, weight_D.shape, weight_D.to(x.dtype), eps)


CUDA_KERNELS: Mapping[str, Kernel] = {
    "attention": DeviceAttention(varlen_attention, is_fit),
    "rms_norm": fused_rms_norm,
    "rotary": triton_kernels.rotary,
    "swiglu": triton_kernels.swiglu,
    "dropout": triton_kernels.dropout,
}
KERNEL_ERRORS = (TritonError,)  # not compiled, too much shared memory, refused by the assembler
