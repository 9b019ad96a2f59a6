"""Whether a model can compute several samples in one pass, each as if it were alone.

transformers says of most models that their attention can be replaced. Some then leave out what tells it the samples
apart, or add a mask of their own; so two short samples are tried before the first step.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.models.attention import packed_attention, register_packed_attention
from swiftlet.models.decoder import Decoder
from swiftlet.models.head import inner_model, is_same_answer, tried
from swiftlet.models.hollow import tried_hollow
from swiftlet.models.rope import follows_length

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
PROBE = "swiftlet_probe"
CU_SEQLENS = [0, 3, 7]


def can_pack(model: nn.Module) -> bool:
    """Return whether a model says that its layers attend through transformers' interface and keep no other state."""
    inner = inner_model(model)
    if isinstance(inner, Decoder):
        return True
    kinds = getattr(inner.config.get_text_config(), "layer_types", None) or ["full_attention"]
    is_known = set(kinds) <= PACKABLE_LAYERS and not getattr(inner, "_is_stateful", False)
    is_known = is_known and not follows_length(inner)
    return is_known and bool(getattr(inner, "_supports_attention_backend", False))


def let_pack(model: nn.Module) -> bool:
    """Let a model attend to packed samples, in place, where it can; return whether it does."""
    inner = inner_model(model)
    if not can_pack(model):
        return False
    if isinstance(inner, Decoder):
        return True
    own = inner.config._attn_implementation
    with tried_hollow(inner):
        is_known = next(inner.parameters()).device.type == "meta" or _tells_apart(inner)
    inner.set_attn_implementation(register_packed_attention() if is_known else own)
    return is_known


def _tells_apart(inner: Any) -> bool:
    """Return whether two samples in one pass give what each gives alone, and every attention is told all it needs.

    That is the boundaries of the samples, and its window: two short samples would not show one that is missing.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    device, dtype = (getattr(next(inner.parameters()), name) for name in ("device", "dtype"))
    ids_T = torch.arange(CU_SEQLENS[-1], device=device)
    positions_T = torch.cat([torch.arange(end - start, device=device) for start, end in pairwise(CU_SEQLENS)])
    mask = torch.ones((1, 1, len(ids_T), len(ids_T)), dtype=torch.bool, device=device).tril()
    is_together = False
    context = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    told: list[bool] = []
    masks: list[tuple[Tensor | None, int | None]] = []

    def masked(*args: Any, **kwargs: Any) -> Tensor | None:
        made = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
        masks.append((made, kwargs.get("local_size")))
        return made

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if is_together:
            told.append(kwargs.get("cu_seqlens") is not None and _is_same(attention_mask, mask))
        else:
            windows = {window for made, window in masks if made is attention_mask}
            told.append(all(_is_no_less(kwargs.get("sliding_window"), window, context) for window in windows))
        return packed_attention(module, query, key, value, attention_mask, **kwargs)

    def hidden(start: int, end: int, **options: Any) -> Tensor:
        ids, positions = ids_T[None, start:end], positions_T[None, start:end]
        outputs = inner.base_model(input_ids=ids, position_ids=positions, use_cache=False, **options)
        return outputs[0][0].float()

    with tried(inner):
        alone = torch.cat([hidden(*ends) for ends in pairwise(CU_SEQLENS)])
        AttentionInterface.register(PROBE, attend)
        AttentionMaskInterface.register(PROBE, masked)
        inner.set_attn_implementation(PROBE)
        hidden(*CU_SEQLENS[:2])  # some models' windows are in their masks alone
        is_together = True
        together = hidden(0, len(ids_T), attention_mask=mask, cu_seqlens=CU_SEQLENS)
    return all(told) and is_same_answer(together, alone, dtype)


def _is_no_less(told: int | None, window: int | None, context: int | None) -> bool:
    """Return whether attention that is told this window sees what the mask lets it see within the context."""
    return told == window or (
        told is None and window is not None and context is not None and window >= context
    )


def _is_same(mask: Tensor | None, expected: Tensor) -> bool:
    if mask is None or mask.shape != expected.shape or mask.dtype != expected.dtype:
        return False
    return torch.allclose(mask, expected)
