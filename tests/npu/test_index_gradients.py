"""Gradients of the lightning indexer on simulated NPUs, against autograd through the same sums on the CPU."""

from __future__ import annotations

import pytest
import torch
from nearness import assert_near

pytestmark = pytest.mark.npu_sim
HIDDEN = torch.ones(5, 7, dtype=torch.bool).triu(3)  # five queries, seven keys: the last sees the last


def sums(q, k, w):
    """The indexer's scores of each key, [B, S, K]."""
    return (torch.einsum("bsnd,bkd->bsnk", q, k[:, :, 0]).relu() * w[..., None]).sum(2)


def probabilities(q, k, scale):
    """Of attention for each head, [B, N, S, K], with maximum and sum [B, N, S, 1]."""
    scores = (torch.einsum("bsnd,bknd->bnsk", q, k) * scale).masked_fill(HIDDEN, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    total = (scores - top).exp().sum(-1, keepdim=True)
    return (scores - top).exp() / total, top, total


def indexer():
    """Two samples; three heads of queries, one of keys."""
    return [torch.randn(*shape).requires_grad_() for shape in ((2, 5, 3, 4), (2, 7, 1, 4), (2, 5, 3))]


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_only_chosen_keys_that_are_seen_have_a_gradient(npu, layout):
    inputs = indexer()
    chosen = torch.stack([torch.randperm(7)[:4] for _ in range(10)]).view(2, 5, 4).int()
    chosen[:, :, 3] = -1
    dy = torch.randn(2, 5, 4)
    places = chosen.clamp(min=0).long()
    counted = (chosen >= 0) & ~HIDDEN.expand(2, 5, 7).gather(2, places)
    (sums(*inputs).gather(2, places) * counted * dy).sum().backward()
    q, k, w = (x.detach() for x in inputs)
    ends = {}
    if layout == "TND":
        q, k, w, dy, chosen = (x.flatten(0, 1) for x in (q, k, w, dy, chosen))
        lengths = {"actual_seq_lengths_query": [5, 10], "actual_seq_lengths_key": [7, 14]}
        ends = {name: torch.tensor(value, dtype=torch.int32).npu() for name, value in lengths.items()}
    cards = (x.npu() for x in (q, k, dy, chosen, w))
    found = npu.npu_lightning_indexer_grad(*cards, **ends, layout=layout)
    for card, cpu in zip(found, inputs, strict=True):
        assert_near(card, cpu.grad.view(card.shape), 1e-5)


def test_the_distance_from_attention_over_all_keys(npu):
    """Attention has a rotary part, and its heads' mean is what the indexer is to find."""
    inputs, scale = indexer(), 0.5
    q, k = torch.randn(2, 5, 2, 6), torch.randn(2, 7, 2, 6)
    attention, top, total = probabilities(q, k, scale)
    scores = sums(*inputs).masked_fill(HIDDEN, -torch.inf)
    logarithms = scores.log_softmax(-1).masked_fill(HIDDEN, 0.0)
    wanted = attention.mean(1)
    expected = (wanted * (wanted.clamp(min=1e-8).log() - logarithms)).sum()
    expected.backward()
    index_top = scores.detach().amax(-1)[:, None]
    index_total = (scores.detach() - index_top.transpose(1, 2)).exp().sum(-1)[:, None]
    cards = [x.detach().npu() for x in (q[..., :4], k[..., :4], *inputs, top, total, index_top, index_total)]
    ropes = {"query_rope": q[..., 4:].npu(), "key_rope": k[..., 4:].npu()}
    *found, loss = npu.npu_dense_lightning_indexer_grad_kl_loss(*cards, scale, **ropes)
    assert_near(loss, expected.detach()[None], 1e-5)
    for card, cpu in zip(found, inputs, strict=True):
        assert_near(card, cpu.grad, 1e-5)


def test_the_distance_from_attention_over_chosen_keys(npu):
    """Each query has chosen two keys that it sees and one place that is empty; the heads share a key."""
    inputs, scale = indexer(), 0.5
    q, k = torch.randn(2, 5, 2, 6), torch.randn(2, 7, 1, 6)
    chosen = torch.tensor([[0, 2, -1], [3, 1, -1], [4, 0, -1], [2, 5, -1], [6, 3, -1]]).expand(2, 5, 3)
    places, empty = chosen.clamp(min=0), chosen < 0
    own = (torch.einsum("bsnd,bkd->bnsk", q, k[:, :, 0]) * scale).gather(
        3, places[:, None].expand(2, 2, 5, 3)
    )
    own = own.masked_fill(empty[:, None], -torch.inf)
    top = own.amax(-1)
    total = (own - top[..., None]).exp().sum(-1)
    wanted = own.softmax(-1).mean(1)
    logarithms = sums(*inputs).gather(2, places).masked_fill(empty, -torch.inf).log_softmax(-1)
    expected = (wanted * (wanted.clamp(min=1e-8).log() - logarithms.masked_fill(empty, 0.0))).sum()
    expected.backward()
    statistics = (x.transpose(1, 2)[:, None] for x in (top, total))  # [B, 1, S, N]
    indices = chosen.int()[:, :, None]
    cards = [x.detach().npu() for x in (q, k, *inputs, indices, *statistics)]
    *found, loss = npu.npu_sparse_lightning_indexer_grad_kl_loss(*cards, scale)
    assert_near(loss, expected.detach()[None], 1e-5)
    for card, cpu in zip(found, inputs, strict=True):
        assert_near(card, cpu.grad, 1e-5)
