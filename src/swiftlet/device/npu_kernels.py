"""Fused operators of Ascend NPUs, all of torch_npu.

Source of names, arguments and limits: the schemas in torch_npu's library and its operator documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
import torch_npu
from torch import Tensor

from swiftlet.device.kernels import AttentionRules, Kernel, left_to_plain, plain_attention, say_plain

RIGHT_DOWN_CAUSAL, BAND = 3, 4  # values of sparse_mode
COMPRESSED = 2048  # edge of the mask that these modes take, whatever the lengths


@lru_cache(maxsize=8)
def _compressed_mask(device: torch.device) -> Tensor:
    return torch.triu(torch.ones(COMPRESSED, COMPRESSED, dtype=torch.bool, device=device), diagonal=1)


def fusion_attention(
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: Sequence[int],
    rules: AttentionRules,
) -> Tensor:
    """Return attention of packed samples in one call: layout TND with cumulative lengths, True in the mask is unseen.

    A window of W tokens is a band of W - 1 tokens before. The lengths stay numbers of the host, so nothing waits.
    """
    reason = left_to_plain(query_QTD, value_KTD, rules)
    if reason is not None:
        say_plain(reason)
        return plain_attention(query_QTD, key_KTD, value_KTD, cu_seqlens, rules)
    ends = list(cu_seqlens[1:])
    band = {"pre_tockens": rules.window - 1, "next_tockens": 0} if rules.window else {}
    out: Tensor = torch_npu.npu_fusion_attention(
        query_QTD.transpose(0, 1).contiguous(),
        key_KTD.transpose(0, 1).contiguous(),
        value_KTD.transpose(0, 1).contiguous(),
        query_QTD.shape[0],
        "TND",
        atten_mask=_compressed_mask(query_QTD.device),
        scale=rules.scale,
        keep_prob=1.0 - rules.dropout_p,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        sparse_mode=BAND if rules.window else RIGHT_DOWN_CAUSAL,
        **band,
    )[0]
    return out


def fused_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return npu_rms_norm; its weight has the type of x."""
    out: Tensor = torch_npu.npu_rms_norm(x, weight_D.to(x.dtype), epsilon=eps)[0]
    return out


def fused_rotary(x_BNSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> Tensor:
    """Return npu_rotary_mul in its layout BNSD, with the angles of all heads the same (B1SD)."""
    cos, sin = (angle.to(x_BNSD.dtype)[:, None] for angle in (cos_BSD, sin_BSD))
    out: Tensor = torch_npu.npu_rotary_mul(x_BNSD, cos, sin)
    return out


def fused_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return npu_swiglu: silu of the first half times the second."""
    out: Tensor = torch_npu.npu_swiglu(torch.cat((gate, up), dim=-1), dim=-1)
    return out


NPU_KERNELS: Mapping[str, Kernel] = {
    "attention": fusion_attention,
    "rms_norm": fused_rms_norm,
    "rotary": fused_rotary,
    "swiglu": fused_swiglu,
}
