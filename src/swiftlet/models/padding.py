"""Whether a model gives a prompt the answer that it has alone where it stands beside a longer one, padded on its left.

Attention masks padding out. A layer that keeps a state may not, in the pass over the prompt or in those after it; so a
short prompt is tried before the first batch of unequal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swiftlet.models.head import is_same_answer

SHORT, LONG, STEPS = 3, 11, 3
# How many keys, or blocks of them, a query of sparse attention chooses: what is tried here is too short to choose from.
CHOOSES_KEYS = ("index_topk", "index_topk_blocks")


def left_padded(rows: Sequence[list[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return the inputs [B, T] of `generate` for prompts that all end at the right."""
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@torch.inference_mode()
def ignores_padding(model: Any, pad_id: int) -> bool:
    """Return whether the logits of a short prompt, and of tokens after it, are the same with padding as without."""
    settings = model.config.get_text_config()
    if any(getattr(settings, name, None) for name in CHOOSES_KEYS):
        return False
    long = list(range(1, LONG + 1))
    short = long[:SHORT]
    alone = _logits(model, [short], pad_id)
    beside = _logits(model, [short, long], pad_id)
    return is_same_answer(beside, alone, next(model.parameters()).dtype)


def _logits(model: Any, rows: list[list[int]], pad_id: int) -> Tensor:
    """Return the logits [STEPS, V] of the first row; the same token follows whatever they are."""
    from transformers import GenerationConfig

    output = model.generate(
        **left_padded(rows, pad_id, next(model.parameters()).device),
        generation_config=GenerationConfig(
            max_new_tokens=STEPS,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=pad_id,
            output_logits=True,
            return_dict_in_generate=True,
        ),
        prefix_allowed_tokens_fn=lambda row, ids: [SHORT + 1],
    )
    return torch.stack([logits_BV[0].float() for logits_BV in output.logits])
