"""Attention of a padding-free micro-batch: each sample attends to itself, causally, and no T x T mask exists.

transformers finds `packed_attention` by its name after `register_packed_attention`; the boundaries of the samples
travel through the model as a keyword argument. Without boundaries (generation) it is transformers' own SDPA.

Shapes: T tokens of all samples, L tokens of one sample, Q heads, K key-value heads, D head size; legend of names as in
`query_QTD`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.device.kernels import AttentionRules, PackedAttention, attend_by_definition, plain_attention
from swiftlet.errors import SwiftletError
from swiftlet.models.attention_cpu import cpu_attention

NAME = "swiftlet_packed"


def segment_attention(
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: list[int],
    rules: AttentionRules,
) -> Tensor:
    """Return the attention output [T, Q, D] where the device has no operator of its own."""
    has_operator = rules.sinks_Q is None and rules.dropout_p == 0 and query_QTD.device.type == "cpu"
    attend = cpu_attention if has_operator and value_KTD.shape[-1] == query_QTD.shape[-1] else plain_attention
    return attend(query_QTD, key_KTD, value_KTD, cu_seqlens, rules)


def register_packed_attention() -> str:
    """Make transformers know the packed attention; return the name to load it by. Doing it twice changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def no_mask(device: torch.device) -> Tensor:
    """Return an empty 4-D mask: transformers takes it for one already made, and `packed_attention` looks away."""
    return torch.empty((1, 1, 0, 0), device=device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: list[int] | None = None,
    packed: PackedAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' interface asks; see its AttentionInterface.

    Args:
        query: [1, Q, T, D]; key and value [1, K, T, D].
        cu_seqlens: boundaries of the samples; None for transformers' own SDPA with its mask.
        packed: the attention of the device; None for `segment_attention`.

    Returns:
        The output [1, T, Q, D], and no attention weights.

    Raises:
        SwiftletError: the model adds a bias to its attention scores, which packing does not know.
    """
    if cu_seqlens is None:
        return _unpacked(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if kwargs.get("position_bias") is not None:
        raise SwiftletError(
            f"{type(module).__name__} adds a position bias to its attention, which packed samples do not have",
            "choose another model",
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, softcap, sinks_Q = kwargs.get("sliding_window"), kwargs.get("softcap"), kwargs.get("s_aux")
    rules = AttentionRules(scale, window, softcap, sinks_Q, dropout)
    output = (packed or segment_attention)(query[0], key[0], value[0], cu_seqlens, rules)
    return output[None], None


def _unpacked(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    *,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend over a padded batch with the mask of transformers, which is boolean or None."""
    if softcap is None and s_aux is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    seen = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - length)
    mask = seen if attention_mask is None else attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys, values = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    rules = AttentionRules(scale, softcap=softcap, sinks_Q=s_aux, dropout_p=dropout)
    output = attend_by_definition(query, keys, values, mask, rules)
    return output.transpose(1, 2), None
