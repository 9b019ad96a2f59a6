"""Layers under torch_npu's own names on simulated NPUs against their definitions on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def test_norms_of_sums_and_of_groups(npu):
    x, y, gamma = torch.randn(3, 8).half(), torch.randn(3, 8).half(), torch.randn(8).half()
    wide, same, _, total = npu.npu_add_rms_norm_cast(x.npu(), y.npu(), gamma.npu())
    assert wide.dtype == torch.float32 and same.dtype == torch.float16
    assert_near(wide, F.rms_norm((x + y).float(), (8,), gamma.float(), 1e-6).half().float())
    assert_near(total, x + y)
    image, weight, bias = torch.randn(2, 4, 3, 3), torch.randn(4), torch.randn(4)
    out, mean, _ = npu.npu_group_norm_swish(image.npu(), 2, weight.npu(), bias.npu(), swish_scale=2.0)
    normed = F.group_norm(image, 2, weight, bias)
    assert_near(out, normed * torch.sigmoid(2 * normed))
    assert_near(mean, image.view(2, 2, -1).mean(-1))


def test_gates_and_turns(npu):
    x = torch.randn(2, 3, 4, 8)
    assert_near(
        npu.npu_gelu_mul(x.npu(), approximate="tanh"), F.gelu(x[..., :4], approximate="tanh") * x[..., 4:]
    )
    angle = torch.rand(2, 1, 4, 4)
    cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.cat((even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()), -1)
    assert_near(npu.npu_interleave_rope(x.npu(), cos.npu(), sin.npu()), turned)


@pytest.mark.parametrize("layout", ["SBH", "TND"])
def test_attention_over_pieces_of_the_keys(npu, layout):
    q, k, v = torch.randn(4, 2, 16), torch.randn(6, 2, 16), torch.randn(6, 2, 16)
    keys = {"scale": 0.3}
    if layout == "TND":
        heads, keys = 2, keys | {"actual_seq_qlen": [4], "actual_seq_kvlen": [3], "softmax_layout": "TND"}
    else:
        heads = 4
    one, other = (
        npu.npu_fusion_attention(q.npu(), a.npu(), b.npu(), heads, layout, **keys)
        for a, b in ((k[:3], v[:3]), (k[3:], v[3:]))
    )
    more = {"input_layout": "TND", "input_softmax_layout": "TND"} if layout == "TND" else {}
    out, _, _ = npu.npu_ring_attention_update(*one[:3], *other[:3], **more)
    if layout == "TND":
        keys["actual_seq_kvlen"] = [6]
    assert_near(out, npu.npu_fusion_attention(q.npu(), k.npu(), v.npu(), heads, layout, **keys)[0].cpu())


def deformed(x: torch.Tensor, weight: torch.Tensor, moves: torch.Tensor, parts: int) -> torch.Tensor:
    """A 3 x 3 convolution with stride 2 and padding 1 whose samples lie where `moves` puts them, place by place."""
    (batch, _, tall, wide), (height, width) = x.shape, moves.shape[2:]
    columns, rows, factors = moves.view(batch, 3, parts, 9, height, width).unbind(1)
    total = torch.zeros(())
    for place in range(9):
        y = rows[:, :, place] + torch.arange(height)[:, None] * 2 - 1 + place // 3
        column = columns[:, :, place] + torch.arange(width) * 2 - 1 + place % 3
        grid = torch.stack((column * 2 / (wide - 1) - 1, y * 2 / (tall - 1) - 1), -1).flatten(0, 1)
        pictures = x.unflatten(1, (parts, -1)).flatten(0, 1)
        seen = F.grid_sample(pictures, grid, align_corners=True) * factors[:, :, place].flatten(
            0, 1
        ).unsqueeze(1)
        total = total + F.conv2d(
            seen.unflatten(0, (batch, parts)).flatten(1, 2), weight.flatten(2)[:, :, place, None, None]
        )
    return total


def test_a_convolution_whose_samples_move(npu):
    x, weight, moves = torch.randn(2, 4, 5, 7), torch.randn(3, 4, 3, 3), torch.randn(2, 2 * 27, 3, 4)
    plain = [tensor.clone().requires_grad_() for tensor in (x, weight, moves)]
    cards = [tensor.npu().requires_grad_() for tensor in (x, weight, moves)]
    bias = torch.randn(3)
    expected = deformed(*plain, parts=2) + bias.view(-1, 1, 1)
    setting = ([3, 3], [1, 1, 2, 2], [1, 1, 1, 1], [1, 1, 1, 1], 1, 2)
    found, samples = npu.npu_deformable_conv2d(*cards, bias.npu(), *setting)
    assert_near(found.detach(), expected.detach())
    assert samples.shape == (2, 4, 9, 12)
    expected.square().sum().backward()
    found.square().sum().backward()
    for cpu, card in zip(plain, cards, strict=True):
        assert_near(card.grad, cpu.grad, 1e-2)


def test_torch_npus_own_deformable_layer(npu):
    from torch_npu.contrib.module import DCNv2

    layer = DCNv2(2, 2, 3, 2, 1).npu()
    x = torch.randn(2, 2, 5, 5).npu()
    assert_near(layer(x).detach(), F.conv2d(x.cpu(), layer.weight.detach().cpu(), None, 2, 1) / 2)


def test_samples_are_normalised_by_their_first_values(npu):
    x, lengths = torch.randn(3, 2, 7), torch.tensor([3, 7, 5])
    for mode, dims in ((0, 1), (1, (0, 1))):
        parts = [x[i, :, :n] for i, n in enumerate(lengths)]
        expected = [
            (x[i] - p.mean(dims, keepdim=True)) / (p.std(dims, keepdim=True) + 1e-5)
            for i, p in enumerate(parts)
        ]
        assert_near(npu.npu_normalize_batch(x.npu(), lengths.npu(), mode), torch.stack(expected))


def test_causal_convolutions_of_channels(npu):
    x, weight, mask = torch.randn(6, 2, 4), torch.randn(3, 4), torch.rand(2, 6) > 0.3

    def plain(x, weight):
        rows = torch.cat([torch.zeros(2, 2, 4), x])
        return sum(rows[i : i + 6] * weight[i] for i in range(3)) * mask.t()[..., None]

    host, card = (
        [t.clone().requires_grad_() for t in (x, weight)],
        [t.npu().requires_grad_() for t in (x, weight)],
    )
    expected, found = plain(*host), npu.npu_masked_causal_conv1d(*card, mask=mask.npu())
    assert_near(found, expected.detach(), 1e-5)
    expected.sum().backward()
    found.sum().backward()
    for a, b in zip(card, host, strict=True):
        assert_near(a.grad, b.grad, 1e-5)


def test_causal_convolutions_keep_the_last_inputs(npu):
    """Samples of two, four and one tokens; the last is padding, and only the second begins with its state."""
    x, weight, states = torch.randn(7, 4), torch.randn(3, 4), torch.randn(3, 2, 4)
    before = {0: torch.zeros(2, 4), 2: states[2]}
    parts = {0: x[:2], 2: x[2:6]}
    whole = {slot: torch.cat((before[slot], part)) for slot, part in parts.items()}
    sums = [sum(w[i : len(w) - 2 + i] * weight[i] for i in range(3)) for w in whole.values()]
    card = states.npu()
    how = {"query_start_loc": [0, 2, 6, 7], "cache_indices": [0, 2, -1], "initial_state_mode": [0, 1, 0]}
    how = {name: torch.tensor(value, dtype=torch.int32).npu() for name, value in how.items()}
    found = npu.npu_fused_causal_conv1d(x.npu(), weight.npu(), card, **how, residual_connection=1)
    assert_near(found[:6], torch.cat(sums) + x[:6], 1e-5)
    assert_near(card, torch.stack((whole[0][-2:], states[1], whole[2][-2:])), 1e-6)


def test_causal_convolutions_go_on_behind_the_accepted_tokens(npu):
    """States hold one token more than the kernel needs; of the second sample two tokens were accepted."""
    x, weight, states = torch.randn(2, 2, 4), torch.randn(3, 4), torch.randn(2, 3, 4)
    whole = [torch.cat((states[i, i : i + 2], x[i])) for i in range(2)]
    expected = torch.stack([sum(w[i : i + 2] * weight[i] for i in range(3)) for w in whole])
    card, out = states.npu(), x.npu()
    accepted = torch.tensor([1, 2], dtype=torch.int32).npu()
    npu.npu_fused_causal_conv1d_v2(out, weight.npu(), card, num_accepted_tokens=accepted)
    assert_near(out, expected, 1e-5)
    assert_near(card, torch.stack([w[-3:] for w in whole]), 1e-6)
    with pytest.raises(RuntimeError, match="does not know activation='silu'"):
        npu.npu_fused_causal_conv1d(x.npu(), weight.npu(), card, activation="silu")
