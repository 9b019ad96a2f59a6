"""Which models answer a prompt beside a longer one as they do alone."""

from __future__ import annotations

import pytest
import torch
from tiny_models import OWN, make

from swiftlet.models.padding import ignores_padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gpt2", "mixtral"])
def test_attention_masks_padding_out(kind, dtype):
    assert ignores_padding(make(kind).to(dtype), 0)


@pytest.mark.parametrize("kind", ["minimax"])
def test_a_state_that_padding_gets_into_is_found_out(kind):
    assert not ignores_padding(make(kind), 0)


def test_sparse_attention_chooses_otherwise_beside_padding():
    sizes = OWN["deepseek_v3"] | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}
    assert not ignores_padding(make("deepseek_v32", **sizes), 0)
