"""Layers that are one operator on simulated NPUs: feed-forward, kinds of attention, losses of split vocabularies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def test_a_feed_forward_layer(npu):
    x, first, second = torch.randn(2, 3, 8), torch.randn(8, 16), torch.randn(16, 8)
    biases = torch.randn(16), torch.randn(8)
    found = npu.npu_ffn(
        x.npu(), first.npu(), second.npu(), "silu", bias1=biases[0].npu(), bias2=biases[1].npu()
    )
    assert_near(found, F.silu(x @ first + biases[0]) @ second + biases[1])
    experts = [w.npu() for w in (torch.stack((first, -first)), torch.stack((second, second)))]
    rows = x.flatten(0, 1)
    expected = torch.cat((F.relu(rows[:2] @ first), F.relu(-rows[2:] @ first))) @ second
    assert_near(npu.npu_ffn(rows.npu(), *experts, "relu", expert_tokens=[2, 4]), expected)
    assert_near(npu.npu_ffn(rows.npu(), *experts, "relu", expert_tokens_index=[2, 6]), expected)
    with pytest.raises(RuntimeError, match="the simulator has no activation 'geglu'"):
        npu.npu_ffn(x.npu(), first.npu(), second.npu(), "geglu")
    with pytest.raises(RuntimeError, match="exclude each other"):
        npu.npu_ffn(rows.npu(), *experts, "relu", expert_tokens=[2, 4], expert_tokens_index=[2, 6])


def test_a_feed_forward_layer_of_integers(npu):
    x, first, second = (torch.randint(-9, 9, shape, dtype=torch.int8) for shape in ((4, 8), (8, 16), (16, 8)))
    scales, offset = (torch.rand(1, 16) * 0.1, torch.rand(1, 8) * 0.1), torch.tensor([2.0])
    hidden = F.gelu((x.float() @ first.float()) * scales[0])
    hidden = (hidden * 1.5 + 2).round().clamp(-128, 127)
    found = npu.npu_ffn(
        x.npu(), first.npu(), second.npu(), "gelu", scale=torch.tensor([1.5]).npu(), offset=offset.npu(),
        deq_scale1=scales[0].npu(), deq_scale2=scales[1].npu(), output_dtype=torch.bfloat16,
    )  # fmt: skip
    assert found.dtype == torch.bfloat16
    assert_near(found.float(), hidden @ second.float() * scales[1], 0.5)
    x = x.half()
    found = npu.npu_ffn(
        x.npu(), first.npu(), second.npu(), "relu", antiquant_scale1=scales[0].half().npu(),
        antiquant_scale2=scales[1].half().npu(),
    )  # fmt: skip
    weights = first.float() * scales[0].half().float(), second.float() * scales[1].half().float()
    assert_near(found.float(), F.relu(x.float() @ weights[0]) @ weights[1], 0.2)


def test_multi_head_attention(npu):
    samples, length, heads, width = 2, 4, 2, 16
    rows = [torch.randn(samples * length, width) for _ in range(3)]
    weights, biases = [torch.randn(width, width) for _ in range(4)], [torch.randn(width) for _ in range(4)]
    mask = torch.randn(samples, heads, length, length)
    q, k, v = (
        F.linear(x, w, b).view(samples, length, heads, -1).transpose(1, 2)
        for x, w, b in zip(rows, weights, biases, strict=False)
    )
    context = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(samples * length, width)
    inputs = [x.npu() for x in (*rows, *weights[:3], mask, weights[3], *biases)]
    sizes = (heads, width // heads, length, length)
    found = npu.npu_multi_head_attention(*inputs, None, *sizes, 0.0, True)
    assert_near(found[0], F.linear(context, weights[3], biases[3]))
    assert_near(found[-1], context)
    assert len(found) == 8
    dropped = npu.npu_multi_head_attention(*inputs, None, *sizes, 0.5, True)
    kept = dropped[6].cpu() != 0
    assert 0 < kept.float().mean() < 1
    again = npu.npu_multi_head_attention(*inputs, dropped[1], *sizes, 0.5, True)
    assert torch.equal(again[0], dropped[0])


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_multi_head_attention_trains(npu, drop):
    samples, length, heads, width = 2, 4, 2, 8
    rows = [torch.randn(samples * length, width) for _ in range(3)]
    weights, biases = [torch.randn(width, width) for _ in range(4)], [torch.randn(width) for _ in range(4)]
    mask, upstream = torch.randn(samples, heads, length, length), torch.randn(samples * length, width)
    on_card = [x.npu().requires_grad_() for x in (*rows, *weights[:3], weights[3], *biases)]
    given = (*on_card[:6], mask.npu(), *on_card[6:], None, heads, width // heads, length, length, drop, True)
    out, _, *_, attention, kept, _ = npu.npu_multi_head_attention(*given)
    out.backward(upstream.npu())
    leaves = [x.requires_grad_() for x in (*rows, *weights, *biases)]
    q, k, v = (
        F.linear(x, w, b).view(samples, length, heads, -1).transpose(1, 2)
        for x, w, b in zip(rows, weights, biases, strict=False)
    )
    shares = (q @ k.transpose(-1, -2) * (width // heads) ** -0.5 + mask).softmax(-1)
    shares = shares * (kept.detach().cpu() != 0) / (1 - drop)
    context = (shares @ v).transpose(1, 2).reshape(samples * length, width)
    F.linear(context, weights[3], biases[3]).backward(upstream)
    for found, leaf in zip(on_card, leaves, strict=True):
        assert_near(found.grad, leaf.grad)


def test_attention_of_bert_trains(npu):
    q, k, v = (torch.randn(2, 3, 4, 8) for _ in range(3))
    mask = torch.where(torch.rand(2, 1, 4, 4) < 0.3, -10000.0, 0.0)
    plain = [x.clone().requires_grad_() for x in (q, k, v)]
    card = [x.npu().requires_grad_() for x in (q, k, v)]
    expected = (
        F.scaled_dot_product_attention(*plain, mask, scale=0.3).transpose(1, 2).flatten(0, 1).flatten(1)
    )
    found = npu.npu_fused_attention_score(*card, mask.npu(), 0.3, 1.0)
    assert_near(found.detach(), expected.detach())
    expected.square().sum().backward()
    found.square().sum().backward()
    for ours, theirs in zip(card, plain, strict=True):
        assert_near(ours.grad, theirs.grad)
    context, weights, kept = npu.npu_fused_attention_score_fwd(
        *(x.detach() for x in card), mask.npu(), 0.3, 0.5
    )
    assert kept.dtype == torch.uint8 and 0 < kept.float().mean() < 1
    dropped = weights.cpu() * kept.cpu().view(weights.shape) * 2
    assert_near(context, (dropped @ v).transpose(1, 2).flatten(0, 1).flatten(1))


def test_dropout_with_a_byte_for_each_element(npu):
    x = torch.ones(1000).npu().requires_grad_()
    y = npu.contrib.function.dropout_with_byte_mask(x, 0.25)
    assert 0.7 < (y != 0).float().mean() < 0.8
    assert_near(y.detach()[y != 0], torch.full((int((y != 0).sum()),), 4 / 3))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def delta_rule(q, k, v, state, beta, g, scale):
    """One sample: outputs and states after each token."""
    outs, states = [], []
    group = v.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        key, query = k[t].repeat_interleave(group, 0), q[t].repeat_interleave(group, 0) * scale
        state = state * g[t].exp()[:, None, None]
        missing = v[t] - torch.einsum("nvk,nk->nv", state, key)
        state = state + torch.einsum("nv,nk->nvk", missing * beta[t][:, None], key)
        outs.append(torch.einsum("nvk,nk->nv", state, query))
        states.append(state)
    return torch.stack(outs), torch.stack(states)


def test_the_gated_delta_rule(npu):
    lengths, total = [2, 3], 5
    q, k = (F.normalize(torch.randn(total, 2, 8), dim=-1) for _ in range(2))
    v, beta, g = torch.randn(total, 4, 6), torch.rand(total, 4), -torch.rand(total, 4)
    state, accepted = torch.randn(total, 4, 6, 8), [2, 1]
    places = torch.tensor([4, 3, 2, 1, 0])
    expected, changed = [], state.clone()
    for start, length, kept in ((0, 2, accepted[0]), (2, 3, accepted[1])):
        own = slice(start, start + length)
        before = state[places[start + kept - 1]]
        out, states = delta_rule(q[own], k[own], v[own], before, beta[own], g[own], 0.5)
        expected.append(out)
        changed[places[own]] = states
    inputs = [x.npu() for x in (q, k, v)]
    counts = torch.tensor(lengths, dtype=torch.int32).npu()
    keys = {
        "beta": beta.npu(), "scale": 0.5, "g": g.npu(), "actual_seq_lengths": counts,
        "ssm_state_indices": places.int().npu(), "num_accepted_tokens": torch.tensor(accepted).int().npu(),
    }  # fmt: skip
    kept = state.npu()
    out, copy = npu.npu_recurrent_gated_delta_rule_functional(*inputs, kept, **keys)
    assert_near(out, torch.cat(expected))
    assert_near(copy, changed)
    assert_near(kept, state, 0)
    assert_near(npu.npu_recurrent_gated_delta_rule(*inputs, kept, **keys), torch.cat(expected))
    assert_near(kept, changed)

    first = state[:2]
    out, last = npu.npu_chunk_gated_delta_rule(
        *inputs, beta=beta.npu(), initial_state=first.npu(), actual_seq_lengths=counts, scale=0.5, g=g.npu()
    )
    for number, own in enumerate((slice(0, 2), slice(2, 5))):
        outs, states = delta_rule(q[own], k[own], v[own], first[number], beta[own], g[own], 0.5)
        assert_near(out[own], outs)
        assert_near(last[number], states[-1])


@pytest.mark.parametrize("keeps_logits", [True, False])
def test_the_cross_entropy_of_a_linear_layer_with_its_vocabulary_in_two_parts(npu, keeps_logits):
    x, weight, target = torch.randn(5, 8).half(), torch.randn(12, 8).half(), torch.tensor([3, 11, 0, 6, 5])
    plain, plain_weight = x.float().requires_grad_(), weight.float().requires_grad_()
    losses = F.cross_entropy(plain @ plain_weight.t(), target, reduction="none")
    upstream = torch.rand(5)
    (losses * upstream).sum().backward()
    bounds, parts = ((0, 5), (6, 11)), []
    for first, last in bounds:
        part = weight[first : last + 1].npu()
        parts.append(
            npu.npu_fused_linear_online_max_sum(x.npu(), part, target.npu(), first, last, keeps_logits)
        )
    largest = torch.maximum(parts[0][0], parts[1][0])
    sums = sum(part[1] * (part[0] - largest).exp() for part in parts)
    outside = [torch.tensor([first <= t <= last for t in target]).logical_not() for first, last in bounds]
    predicted = sum(
        torch.where(mask.npu(), 0, part[2] + part[0] - largest)
        for part, mask in zip(parts, outside, strict=True)
    )
    assert parts[0][3].tolist() == [0b01010111] and parts[0][4].tolist() == [3, 0, 0, 0, 5]
    total = torch.zeros(5, 8)
    for number, (first, last) in enumerate(bounds):
        logits = parts[number][5]
        loss, softmax = npu.npu_fused_cross_entropy_loss_with_max_sum(
            largest, sums, predicted, vocab_parallel_logits=logits
        )
        assert_near(loss, losses.detach(), 1e-2)
        assert (softmax is None) is not keeps_logits
        grads = npu.npu_fused_linear_cross_entropy_loss_with_max_sum_backward(
            upstream.npu(), x.npu(), weight[first : last + 1].npu(), *parts[number][3:5], logits_max=largest,
            sum_exp_logits=sums, softmax=softmax,
        )  # fmt: skip
        assert_near(grads[1].float(), plain_weight.grad[first : last + 1], 2e-2)
        total += grads[0].cpu().float()
    torch.testing.assert_close(total, plain.grad, rtol=2e-2, atol=2e-2)
    with pytest.raises(RuntimeError, match="without softmax, the maxima and sums are needed"):
        npu.npu_fused_linear_cross_entropy_loss_with_max_sum_backward(
            upstream.npu(), x.npu(), weight[:6].npu(), *parts[0][3:5]
        )


def test_attention_over_parts_of_the_keys_becomes_one(npu):
    scores, values = torch.randn(4, 6), torch.randn(4, 6, 8)
    parts = [(scores[:, own], values[:, own]) for own in (slice(0, 2), slice(2, 6))]
    outs = [(s.softmax(-1)[..., None] * v).sum(1) for s, v in parts]
    sums = [s.logsumexp(-1).npu() for s, _ in parts]
    out, lse = npu.npu_attention_update(sums, [x.npu() for x in outs], 1)
    assert_near(out, (scores.softmax(-1)[..., None] * values).sum(1))
    assert_near(lse, scores.logsumexp(-1))


def test_norm_and_projections_before_attention(npu):
    x, weights = torch.randn(12, 8), [torch.randn(8, 8) for _ in range(3)]
    gamma, beta, *biases = (torch.randn(8) for _ in range(5))
    given = [t.npu() for t in (x, *weights, gamma, beta, *biases)]
    norm, *heads, mean, variance = npu.npu_fused_attention_layernorm_qkv_fwd(*given, 6, 2)
    plain = F.layer_norm(x, (8,), gamma, beta).requires_grad_()
    assert_near(norm, plain.detach())
    assert_near(mean, x.mean(1))
    assert_near(variance, x.var(1, correction=0))
    leaves = [t.requires_grad_() for t in (*weights, *biases)]
    expected = [
        (plain @ w + b).view(2, 6, 2, 4).transpose(1, 2) for w, b in zip(weights, biases, strict=True)
    ]
    upstream = [torch.randn(2, 2, 6, 4) for _ in range(3)]
    torch.autograd.backward(expected, upstream)
    for found, want in zip(heads, expected, strict=True):
        assert_near(found, want.detach())
    above = torch.randn(12, 8)
    grads = npu.npu_fused_attention_qkv_grad(*(t.npu() for t in upstream), *given[1:4], norm, above.npu())
    for found, want in zip(grads, (plain.grad + above, *(t.grad for t in leaves)), strict=True):
        assert_near(found, want)
    again = [t.clone().requires_grad_() for t in (x, gamma, beta)]
    F.layer_norm(again[0], (8,), *again[1:]).backward(above)
    found = npu.npu_layernorm_grad(above.npu(), given[0], (8,), mean, variance, given[4], given[5])
    for one, want in zip(found, again, strict=True):
        assert_near(one, want.grad)


def test_ranges_are_filled(npu):
    x = torch.zeros(2, 3, 4).npu()
    start, end = (torch.tensor([[0, 2]]) + shift for shift in (0, 2))
    value = torch.tensor([7.0]).npu()
    rows = npu.npu_masked_fill_range(x, start.int().npu(), end.int().npu(), value, -1)
    assert rows[:, 0].tolist() == [[7, 7, 0, 0], [0, 0, 7, 7]]
    middle = npu.npu_masked_fill_range(x, torch.tensor([[1]]).npu(), torch.tensor([[3]]).npu(), value, 1)
    assert middle[:, :, 0].tolist() == [[0, 7, 7]] * 2
