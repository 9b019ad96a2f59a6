"""Plain operators against torch's own and against their definitions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from swiftlet.device.kernels import (
    AttentionRules,
    plain_attention,
    reference_attention,
    rms_norm,
    rotary,
    swiglu,
)


def tensors(heads=4, kv_heads=2, tokens=37, width=8, seed=0):
    torch.manual_seed(seed)
    shapes = ((heads, tokens, width), (kv_heads, tokens, width), (kv_heads, tokens, width))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def by_hand(q, k, v, cu_seqlens, scale, window, softcap, sinks):
    """One query at a time, one head at a time."""
    out = torch.zeros(q.shape[1], q.shape[0], q.shape[2], dtype=q.dtype)
    group = q.shape[0] // k.shape[0]
    for start, end in pairwise(cu_seqlens):
        for head in range(q.shape[0]):
            for i in range(start, end):
                first = max(start, i - window + 1) if window else start
                scores = k[head // group, first : i + 1] @ q[head, i] * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head].reshape(1).to(scores.dtype)])
                weights = torch.softmax(scores, dim=0)[: i + 1 - first]
                out[i, head] = weights @ v[head // group, first : i + 1]
    return out


def assert_is_its_definition(attention, window, softcap, sinks):
    q, k, v = tensors()
    lengths = [0, 1, 14, 14 + 9, 37]
    sinks = None if sinks is None else torch.tensor(sinks)
    found = attention(q, k, v, lengths, AttentionRules(0.3, window, softcap, sinks))
    right = by_hand(q, k, v, lengths, 0.3, window, softcap, sinks)
    assert torch.allclose(found, right, atol=1e-6)
    gradients = torch.autograd.grad(found.sum(), (q, k, v))
    expected = torch.autograd.grad(right.sum(), (q, k, v))
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("attention", [plain_attention, reference_attention])
@pytest.mark.parametrize(
    "window, softcap, sinks",
    [
        (None, None, None),
        (5, None, None),
        (100, None, None),
        (None, 3.0, None),
        (4, 3.0, None),
        (None, None, [0.5, -1, 2, 0]),
    ],
)
def test_attention_is_its_definition(attention, window, softcap, sinks):
    assert_is_its_definition(attention, window, softcap, sinks)


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize(
    "window, softcap, sinks", [(1, None, None), (3, None, None), (None, 3.0, None), (7, 3.0, [0.5, -1, 2, 0])]
)
def test_queries_that_are_taken_in_blocks_see_the_same_keys(monkeypatch, size, window, softcap, sinks):
    monkeypatch.setattr("swiftlet.device.kernels.QUERY_BLOCK", size)
    assert_is_its_definition(plain_attention, window, softcap, sinks)


def test_dropout_of_attention_weights():
    q, k, v = tensors(tokens=64)
    torch.manual_seed(0)
    for attention in (plain_attention, reference_attention):
        plain, dropped = (attention(q, k, v, [0, 64], AttentionRules(0.3, dropout_p=p)) for p in (0.0, 0.5))
        assert not torch.allclose(plain, dropped)


def test_rms_norm_is_torchs():
    x, weight = torch.randn(5, 16), torch.randn(16)
    assert torch.allclose(rms_norm(x, weight, 1e-5), functional.rms_norm(x, (16,), weight, 1e-5), atol=1e-6)
    assert rms_norm(x.bfloat16(), weight.bfloat16(), 1e-5).dtype == torch.bfloat16


def test_rotary_is_that_of_transformers():
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    cos, sin = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    first, second = apply_rotary_pos_emb(q, k, cos, sin)
    assert torch.allclose(rotary(q, cos, sin), first) and torch.allclose(rotary(k, cos, sin), second)


def test_swiglu_is_silu_times_up():
    gate, up = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.allclose(swiglu(gate, up), gate * torch.sigmoid(gate) * up)
