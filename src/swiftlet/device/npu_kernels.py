"""Fused operators of Ascend NPUs, all of torch_npu.

Source of names, arguments and limits: the schemas in torch_npu's library and its operator documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch_npu
from torch import Tensor

from swiftlet.device.kernels import packed_attention

NO_MASK, RIGHT_DOWN_CAUSAL, BAND = 0, 3, 4  # values of sparse_mode
COMPRESSED = 2048  # edge of the mask that the sparse modes 2 to 4 take, whatever the lengths


@lru_cache(maxsize=8)
def _compressed_mask(device: torch.device) -> Tensor:
    return torch.triu(torch.ones(COMPRESSED, COMPRESSED, dtype=torch.bool, device=device), diagonal=1)


def fusion_attention(
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
    """Return attention of packed samples in one call: layout TND with cumulative lengths, True in the mask is unseen.

    A window of W tokens is a band of W - 1 tokens before. The lengths stay numbers of the host, so nothing waits.
    """
    if softcap or (window and not causal):
        return packed_attention(
            q_THD, k_TKD, v_TKD, cu_seqlens, scale, causal=causal, window=window, softcap=softcap
        )
    ends = list(cu_seqlens[1:])
    options: dict[str, Any] = {"sparse_mode": NO_MASK}
    if causal:
        options = {"sparse_mode": RIGHT_DOWN_CAUSAL, "atten_mask": _compressed_mask(q_THD.device)}
    if window:
        options |= {"sparse_mode": BAND, "pre_tockens": window - 1, "next_tockens": 0}
    out: Tensor = torch_npu.npu_fusion_attention(
        q_THD,
        k_TKD,
        v_TKD,
        q_THD.shape[1],
        "TND",
        scale=scale,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        **options,
    )[0]
    return out


def fused_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return npu_rms_norm; its weight has the type of x."""
    out: Tensor = torch_npu.npu_rms_norm(x, weight_D.to(x.dtype), epsilon=eps)[0]
    return out


def fused_rotary(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Return npu_rotary_mul in its layout BSND, with one sequence and the angles of all heads the same."""
    cos, sin = (angle.to(x_THD.dtype)[None, :, None] for angle in (cos_TD, sin_TD))
    out: Tensor = torch_npu.npu_rotary_mul(x_THD[None], cos, sin)[0]
    return out


def fused_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return npu_swiglu: silu of the first half times the second."""
    out: Tensor = torch_npu.npu_swiglu(torch.cat((gate, up), dim=-1), dim=-1)
    return out


NPU_KERNELS: dict[str, Callable[..., Any]] = {
    "attention": fusion_attention,
    "rms_norm": fused_rms_norm,
    "rotary": fused_rotary,
    "swiglu": fused_swiglu,
}
