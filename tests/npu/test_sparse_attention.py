"""Attention over chosen keys on simulated NPUs, against dense attention with a mask on the CPU."""

from __future__ import annotations

import pytest
import torch
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def dense(q, k, v, scale, seen):
    """q [S, N, D], k and v [K, N, D], seen [S, N, K]."""
    scores = torch.einsum("snd,knd->snk", q, k) * scale
    return torch.einsum("snk,knd->snd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32).npu()


def test_windows_of_tokens_are_weighed_within_samples(npu):
    plain = [torch.randn(20, 2, 4).requires_grad_(), torch.randn(4, 2).requires_grad_()]
    starts = [0, 2, 4, 11, 13, 15]
    expected = torch.stack([(plain[0][i : i + 4] * plain[1][..., None]).sum(0) for i in starts])
    expected.square().sum().backward()
    cards = [x.detach().npu().requires_grad_() for x in plain]
    found = npu.npu_nsa_compress(*cards, 4, 2, actual_seq_len=[8, 11, 20])
    found.square().sum().backward()
    assert_near(found.detach(), expected.detach())
    for card, cpu in zip(cards, plain, strict=True):
        assert_near(card.grad, cpu.grad)


def test_blocks_of_keys_that_are_selected(npu):
    """Two samples; two heads share a head of the keys, and the last block of the second sample is short."""
    blocks = torch.tensor([[[0, 1]], [[1, -1]], [[2, 0]]], dtype=torch.int32)
    lengths, starts = [8, 8, 10], [0, 0, 8]
    plain = [torch.randn(*shape).requires_grad_() for shape in ((3, 2, 4), (18, 1, 4), (18, 1, 3))]
    seen = torch.zeros(3, 2, 18, dtype=torch.bool)
    for token, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for block in blocks[token, 0].tolist():
            if block >= 0:
                seen[token, :, start + 4 * block : start + min(4 * block + 4, length)] = True
    wide = [x.expand(-1, 2, -1) for x in plain[1:]]
    expected = dense(plain[0], *wide, 0.5, seen)
    expected.square().sum().backward()
    cards = [x.detach().npu().requires_grad_() for x in plain]
    how = {"actual_seq_qlen": [2, 3], "actual_seq_kvlen": [8, 18]}
    out, maximum, total = npu.npu_nsa_select_attention(*cards, blocks.npu(), 0.5, 2, 4, 2, **how)
    out.square().sum().backward()
    assert_near(out.detach(), expected.detach())
    assert (maximum.shape, total.shape) == ((3, 2, 8), (3, 2, 8))
    for card, cpu in zip(cards, plain, strict=True):
        assert_near(card.grad, cpu.grad)


def test_one_query_over_selected_blocks_in_pages(npu):
    q, k, v = torch.randn(2, 2, 4), torch.randn(4, 8, 4), torch.randn(4, 8, 3)
    table, lengths = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32), [12, 16]
    chosen = torch.tensor([[[2, 0]], [[3, -1]]], dtype=torch.int32)
    out = npu.npu_nsa_select_attention_infer(
        q.npu(), k.npu(), v.npu(), chosen.npu(), 0.5, 2, 1, 4, 2, 8, layout="TND", block_table=table.npu(),
        actual_seq_kvlen=lengths,
    )  # fmt: skip
    for sample, places in enumerate(([8, 9, 10, 11, 0, 1, 2, 3], [12, 13, 14, 15])):
        own_k, own_v = (x[table[sample].long()].flatten(0, 1)[places, None].expand(-1, 2, -1) for x in (k, v))
        every = torch.ones(1, 2, len(places), dtype=torch.bool)
        assert_near(out[sample : sample + 1], dense(q[sample : sample + 1], own_k, own_v, 0.5, every))


def test_windows_are_attended_and_the_heaviest_blocks_found(npu):
    q, k, v = torch.randn(5, 2, 8), torch.randn(6, 1, 8), torch.randn(6, 1, 4)
    mask = torch.triu(torch.ones(5, 6), 2).to(torch.uint8)
    first = torch.zeros(5, 4, dtype=torch.uint8)
    first[:, 3] = 1  # the last block is to come first
    out, best, maximum, _ = npu.npu_nsa_compress_attention(
        q.npu(), k.npu(), v.npu(), 0.3, 2, 4, 2, 4, 3, topk_mask=first.npu(), atten_mask=mask.npu(),
        actual_seq_qlen=[5], actual_cmp_seq_kvlen=[6], actual_sel_seq_kvlen=[4],
    )  # fmt: skip
    seen = ~mask.bool()[:, None].expand(-1, 2, -1)
    assert_near(out, dense(q, k.expand(-1, 2, -1), v.expand(-1, 2, -1), 0.3, seen))
    assert (best.shape, best.dtype, maximum.shape) == ((5, 1, 3), torch.int32, (5, 2, 8))
    assert (best[:, 0, 0] == 3).all()
    weights = (torch.einsum("snd,kmd->snk", q, k) * 0.3).masked_fill(~seen, -torch.inf).softmax(-1).sum(1)
    # windows of two strides over blocks of two: a block meets the windows around it once, twice and once
    weighed = [sum(times * (weights[:, i] if i < 6 else 0) for i, times in ((2 * b, 1), (2 * b + 1, 2), (2 * b + 2, 1)))
               for b in range(3)]  # fmt: skip
    assert best[:, 0, 1].tolist() == torch.stack(weighed, 1).argmax(1).tolist()


def test_windows_in_pages_keep_the_ends_of_the_sample(npu):
    q, k, v = torch.randn(1, 2, 8), torch.randn(4, 4, 8), torch.randn(4, 4, 8)
    out, best = npu.npu_nsa_compress_attention_infer(
        q.npu(), k.npu(), v.npu(), 0.3, 2, 1, 4, 3, 4, 4, 2, layout="TND", block_table=ints([2, 0, 1, 3]),
        actual_cmp_seq_kvlen=[14],
    )  # fmt: skip
    own = [x[[2, 0, 1, 3]].flatten(0, 1)[:14, None].expand(-1, 2, -1) for x in (k, v)]
    assert_near(out, dense(q, *own, 0.3, torch.ones(1, 2, 14, dtype=torch.bool)))
    assert set(best.flatten().tolist()) == {0, 6, 7}  # 30 keys are eight blocks


def test_a_window_that_is_full_goes_to_its_slot(npu):
    pages, weight = torch.randn(2, 4, 1, 3), torch.randn(3, 1)
    cache = torch.zeros(5, 1, 3).npu()
    npu.npu_nsa_compress_infer(
        pages.npu(), weight.npu(), ints(4, 0), 3, 2, 4, block_table=ints([1, 0], [0, 1]), actual_seq_len=[5, 6],
        cache=cache,
    )  # fmt: skip
    rows = torch.cat((pages[1], pages[0]))[2:5]
    expected = torch.zeros(5, 1, 3)
    expected[4] = (rows * weight[..., None]).sum(0)
    assert_near(cache, expected)


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_the_indexer_finds_the_keys_of_the_largest_sums(npu, layout):
    q, k, w = torch.randn(1, 3, 4, 8), torch.randn(3, 4, 1, 8), torch.randn(1, 3, 4)
    if layout == "TND":
        q, w = q[0], w[0]
    best, values = npu.npu_lightning_indexer(
        q.npu(), k.npu(), w.npu(), actual_seq_lengths_query=ints(3), actual_seq_lengths_key=ints(10),
        block_table=ints([1, 2, 0]), layout_query=layout, layout_key="PA_BSND", sparse_count=9, return_value=True,
    )  # fmt: skip
    keys = torch.cat((k[1], k[2], k[0]))[:10, 0]
    scores = (torch.einsum("snd,kd->snk", q.view(3, 4, 8), keys).relu() * w.view(3, 4, 1)).sum(1)
    for token in range(3):
        count = min(8 + token, 9)  # the last query sees all ten keys
        ordered = scores[token, : 8 + token].sort(descending=True, stable=True)
        assert best.view(3, 9)[token, :count].tolist() == ordered.indices[:count].tolist()
        assert_near(values.view(3, 9)[token, :count], ordered.values[:count])
    assert best.view(3, 9)[0].tolist()[-1] == -1


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_attention_over_keys_that_were_chosen(npu, layout):
    """Causal: of the chosen keys a query sees those before it; the rotated parts count in the scores alone."""
    shapes = {"q": (2, 3, 2, 4), "k": (2, 6, 1, 4), "q_rope": (2, 3, 2, 2), "k_rope": (2, 6, 1, 2)}
    plain = {name: torch.randn(*shape).requires_grad_() for name, shape in shapes.items()}
    chosen = torch.stack([torch.randperm(6)[:4] for _ in range(6)]).view(2, 3, 1, 4).int()
    expected = []
    for sample in range(2):
        seen = torch.zeros(3, 2, 6, dtype=torch.bool)
        for token in range(3):
            seen[token, :, chosen[sample, token, 0].long()] = True
            seen[token, :, 4 + token :] = False
        q, k = (torch.cat((plain[x][sample], plain[x + "_rope"][sample]), -1) for x in "qk")
        expected.append(dense(q, k.expand(-1, 2, -1), plain["k"][sample].expand(-1, 2, -1), 0.4, seen))
    expected = torch.stack(expected)
    expected.square().sum().backward()
    fold = (lambda x: x.flatten(0, 1)) if layout == "TND" else (lambda x: x)
    cards = {name: fold(x.detach()).npu() for name, x in plain.items()}
    lengths = {"BSND": ((3, 3), (6, 6)), "TND": ((3, 6), (6, 12))}[layout]
    lengths = [ints(*x) for x in lengths]
    out, maximum, total = npu.npu_sparse_flash_attention(
        cards["q"], cards["k"], cards["k"], fold(chosen).npu(), 0.4, actual_seq_lengths_query=lengths[0],
        actual_seq_lengths_kv=lengths[1], query_rope=cards["q_rope"], key_rope=cards["k_rope"], layout_query=layout,
        layout_kv=layout, attention_mode=2, return_softmax_lse=True,
    )  # fmt: skip
    assert_near(out, fold(expected.detach()))
    assert maximum.shape == ((2, 1, 3, 2) if layout == "BSND" else (1, 6, 2))
    grads = npu.npu_sparse_flash_attention_grad(
        cards["q"], cards["k"], None, fold(chosen).npu(), 2 * out, out, maximum, total, 0.4, 1, cards["q_rope"],
        cards["k_rope"], *lengths, layout,
    )  # fmt: skip
    for found, name in zip((grads[0], grads[1], grads[3], grads[4]), shapes, strict=True):
        assert_near(found, fold(plain[name].grad))
    with pytest.raises(RuntimeError, match="no sparse_mode 4 for chosen keys"):
        npu.npu_sparse_flash_attention(
            cards["q"], cards["k"], cards["k"], fold(chosen).npu(), 0.4, actual_seq_lengths_query=lengths[0],
            actual_seq_lengths_kv=lengths[1], layout_query=layout, layout_kv=layout, sparse_mode=4,
        )  # fmt: skip


def test_maxima_and_sums_of_dense_index_scores(npu):
    query, key, weights = torch.randn(7, 3, 8), torch.randn(9, 1, 8), torch.randn(7, 3)
    ends = [3, 7], [4, 9]
    top, total = npu.npu_dense_lightning_indexer_softmax_lse(
        query.npu(), key.npu(), weights.npu(), actual_seq_qlen=ends[0], actual_seq_klen=ends[1], layout="TND"
    )
    scores = ((query @ key[:, 0].t()).relu() * weights[..., None]).sum(1)
    scores[:3, 4:] = scores[3:, :4] = -torch.inf
    for row in range(7):
        scores[row, (row + 2 if row < 3 else row + 3) :] = -torch.inf  # the last query sees the last key
    assert_near(top[0], scores.amax(1), 1e-5)
    assert_near(total[0], (scores - scores.amax(1, keepdim=True)).exp().sum(1), 1e-4)
    one = npu.npu_dense_lightning_indexer_softmax_lse(
        query[None, :3].npu(), key[None, :4].npu(), weights[None, :3].npu()
    )
    assert_near(one[0], top[0, :3].cpu()[None, None])
