"""Quantised operators and mixtures of experts of simulated NPUs against their definitions on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-9, 10, shape, dtype=torch.int8)


def test_rows_are_quantised_by_their_largest(npu):
    x, smooth = torch.randn(4, 16), torch.rand(16) + 0.5
    values, scale = npu.npu_dynamic_quant(x.npu(), smooth_scales=smooth.npu())
    expected = (x * smooth).abs().amax(1) / 127
    assert_near(scale, expected)
    assert_near(values, (x * smooth / expected[:, None]).round().to(torch.int8), 0)
    words, scale = npu.npu_dynamic_quant(x.npu(), dst_type=torch.quint4x2)
    assert words.dtype == torch.int32 and words.shape == (4, 2)
    assert_near(npu.npu_anti_quant(words, scale[:1]).float()[0], x[0], x.abs().max().item() / 7)
    whole, scale, offset = npu.npu_dynamic_quant_asymmetric(x.npu())
    assert_near((whole.float() - offset[:, None]) * scale[:, None], x, 0.05)


def test_values_are_quantised_and_come_back(npu):
    x, scale = torch.randn(3, 8).half(), torch.tensor([0.1])
    values = npu.npu_quantize(x.npu(), scale.npu(), torch.tensor([3.0]).npu(), torch.qint8, 1)
    assert_near(values, (x.float() / 0.1 + 3).round().to(torch.int8), 0)
    back = npu.npu_anti_quant(values, scale.npu(), offset=torch.tensor([-3.0]).npu())
    assert back.dtype == torch.float16
    assert_near(back.float(), x.float(), 0.06)
    with pytest.raises(RuntimeError, match="the simulator does not quantise to the type number"):
        npu.npu_quantize(x.npu(), scale.npu(), None, torch.float32, 1)


def test_products_of_integers(npu):
    a, b, scale, tokens = int8(5, 16), int8(16, 8), torch.rand(8), torch.rand(5)
    plain = a.float() @ b.float()
    keys = {"pertoken_scale": tokens.npu(), "output_dtype": torch.bfloat16}
    found = npu.npu_quant_matmul(a.npu(), b.npu(), scale.npu(), **keys)
    assert_near(found, (plain * scale * tokens[:, None]).bfloat16(), 0.02)
    bits = npu.npu_trans_quant_param(torch.tensor([0.5], device="npu"), torch.tensor([-2.0], device="npu"))
    assert bits.item() == 0x3F000000 | 0x1FE << 37 | 1 << 46
    bias = torch.randint(-5, 5, (8,), dtype=torch.int32)
    found = npu.npu_quant_matmul(a.npu(), b.npu(), bits, bias=bias.npu(), output_dtype=torch.float16)
    assert_near(found.float(), (plain + bias) * 0.5)
    assert_near(
        npu.npu_quant_matmul(a.npu(), b.npu(), bits), (plain * 0.5).round().clamp(-128, 127).to(torch.int8), 0
    )
    packed = npu.npu_convert_weight_to_int4pack(
        torch.randint(-8, 8, (16, 8), dtype=torch.int32, device="npu")
    )
    assert packed.shape == (16, 1)


def test_weights_are_quantised_for_themselves(npu):
    x, weight = torch.randn(3, 16).half(), torch.randint(-8, 8, (16, 8), dtype=torch.int32)
    scale, offset = torch.rand(2, 8).half(), torch.randn(2, 8).half()
    wide = (weight + offset.repeat_interleave(8, 0)) * scale.repeat_interleave(8, 0)
    for form in (weight.to(torch.int8).npu(), npu.npu_convert_weight_to_int4pack(weight.npu())):
        found = npu.npu_weight_quant_batchmatmul(
            x.npu(), form, scale.npu(), offset.npu(), antiquant_group_size=8
        )
        assert_near(found.float(), x.float() @ wide.float(), 0.05)


def test_norms_and_gates_give_integers(npu):
    x, y, gamma = (torch.randn(4, 8) for _ in range(3))
    normed = F.rms_norm(x + y, (8,), gamma[0], 1e-6)
    scale = torch.full((8,), 0.05)
    first, _, total = npu.npu_add_rms_norm_quant(x.npu(), y.npu(), gamma[0].npu(), scale.npu(), None)
    assert_near(total, x + y)
    assert_near(first.float(), (normed / 0.05).round().clamp(-128, 127), 1.01)
    first, _, _, found, _ = npu.npu_add_rms_norm_dynamic_quant(x.npu(), y.npu(), gamma[0].npu())
    assert_near(first.float() * found[:, None], normed, 0.05)
    half, beta = x.half(), torch.zeros(8).half()
    keys = [
        t.npu()
        for t in (gamma[:1].half(), beta, torch.tensor([20.0]).half(), torch.tensor([1], dtype=torch.int8))
    ]
    expected = (
        (F.rms_norm(half.float(), (8,), gamma[0].half().float(), 1e-6) * 20 + 1).round().clamp(-128, 127)
    )
    assert_near(npu.npu_rms_norm_quant(half.npu(), *keys).float(), expected, 1.01)
    wide = torch.randn(4, 16)
    gated = wide[:, :8] * F.silu(wide[:, 8:])
    values, factor = npu.npu_swiglu_quant(wide.npu(), quant_mode=1, dst_type=torch.int8)
    assert_near(factor, 127 / gated.abs().amax(1))
    assert_near(values.float() / factor[:, None], gated, 0.05)
    whole, weights, tokens = torch.randint(-50, 50, (4, 16)), torch.rand(2, 16) * 0.1, torch.rand(4)
    groups = torch.tensor([1, 3])
    plain = whole * weights[[0, 1, 1, 1]] * tokens[:, None]
    values, found = npu.npu_dequant_swiglu_quant(
        whole.int().npu(), weight_scale=weights.npu(), activation_scale=tokens.npu(), group_index=groups.npu(),
        activate_left=True, quant_mode=1,
    )  # fmt: skip
    assert_near(values.float() * found[:, None], F.silu(plain[:, :8]) * plain[:, 8:], 0.05)
    bias = torch.randint(-9, 9, (16,), dtype=torch.int32)
    found = npu.npu_dequant_bias(whole.int().npu(), weights[0].npu(), tokens.npu(), bias.npu())
    assert_near(found.float(), (whole + bias) * weights[0] * tokens[:, None], 0.02)


def dense(x, experts, weights, matrices):
    """A mixture by its definition: each token through each of its experts."""
    rows = [
        sum(weight * (token @ matrices[expert]) for weight, expert in zip(some, chosen, strict=True))
        for token, some, chosen in zip(x, weights, experts.tolist(), strict=True)
    ]
    return torch.stack(rows)


def test_a_mixture_of_experts_by_its_first_way(npu):
    x, scores, matrices = torch.randn(6, 8), torch.randn(6, 4), torch.randn(4, 8, 8)
    weights, experts, rows = npu.npu_moe_gating_top_k_softmax(scores.npu(), k=2)
    expected = scores.softmax(-1).topk(2)
    assert_near(weights, expected.values)
    assert experts.tolist() == expected.indices.tolist() and rows[:, 1].tolist() == [6, 7, 8, 9, 10, 11]
    moved, places, ordered = npu.npu_moe_init_routing(x.npu(), rows, experts, 6)
    ends = npu.npu_moe_compute_expert_tokens(ordered, 4)
    assert ends[-1].item() == 12
    keys = {"group_list": ends.long(), "split_item": 2, "group_type": 0}
    done = npu.npu_grouped_matmul([moved], [matrices.npu()], **keys)[0]
    out = npu.npu_moe_finalize_routing(done, None, None, None, weights, places, experts)
    assert_near(out, dense(x, experts.cpu(), weights.cpu(), matrices))


@pytest.mark.parametrize("kind", ["plain", "int8 and int8", "int8 weights"])
def test_a_mixture_of_experts_by_its_second_way(npu, kind):
    x, matrices, scale = torch.randn(6, 8), int8(4, 8, 8), torch.rand(4, 8) * 0.1
    wide = matrices * scale[:, None]
    experts = torch.tensor([[0, 2], [3, 1], [2, 3], [0, 1], [1, 3], [2, 0]], dtype=torch.int32)
    weights = torch.rand(6, 2)
    moved, places, counts, _ = npu.npu_moe_init_routing_v2(
        x.npu(), experts.npu(), expert_num=4, expert_tokens_num_type=1, expert_tokens_num_flag=True,
        active_expert_range=[0, 4],
    )  # fmt: skip
    assert counts.tolist() == [3, 3, 3, 3]
    keys = {"group_list": counts, "group_list_type": 1, "split_item": 2, "group_type": 0}
    if kind == "plain":
        done = npu.npu_grouped_matmul([moved], [wide.npu()], **keys)[0]
    elif kind == "int8 weights":
        done = npu.npu_grouped_matmul([moved], [matrices.npu()], antiquant_scale=[scale.npu()], **keys)[0]
    else:
        small, tokens = npu.npu_dynamic_quant(moved)
        scales = {"scale": [scale.npu()], "per_token_scale": [tokens], "output_dtype": torch.bfloat16}
        done = npu.npu_grouped_matmul([small], [matrices.npu()], **scales, **keys)[0].float()
    out = npu.npu_moe_finalize_routing(done, None, None, None, weights.npu(), places, None, drop_pad_mode=2)
    assert_near(out, dense(x, experts, weights, wide), 0.2 if kind == "int8 and int8" else 1e-3)


def test_the_best_experts_of_the_best_groups(npu):
    x, bias = torch.randn(5, 8), torch.randn(8)
    weights, experts, whole = npu.npu_moe_gating_top_k(
        x.npu(), 2, bias=bias.npu(), k_group=1, group_count=2, group_select_mode=1, norm_type=1, out_flag=True,
        routed_scaling_factor=2.5,
    )  # fmt: skip
    assert_near(whole, x.sigmoid())
    scores = (x.sigmoid() + bias).view(5, 2, 4)
    group = scores.topk(2, -1).values.sum(-1).argmax(-1)
    for row in range(5):
        best = scores[row, group[row]].topk(2).indices + 4 * group[row]
        assert experts[row].tolist() == best.tolist()
        chosen = x[row].sigmoid()[best]
        assert_near(weights[row], chosen / chosen.sum() * 2.5)


def test_tokens_go_to_experts_and_back_with_gradients(npu):
    x, probs = torch.randn(4, 8).npu().requires_grad_(), torch.rand(4, 2).npu().requires_grad_()
    experts = torch.tensor([[1, 0], [2, 1], [0, 2], [1, 2]]).npu()
    permuted, places = npu.npu_moe_token_permute(x, experts)
    assert permuted.shape == (8, 8)
    assert torch.equal(permuted.cpu()[places.cpu().long()], x.detach().cpu().repeat_interleave(2, 0))
    factor = torch.arange(1, 9, device="npu")[:, None]
    back = npu.npu_moe_token_unpermute(permuted * factor, places, probs)
    back.square().sum().backward()
    y, q = (t.detach().cpu().requires_grad_() for t in (x, probs))
    again = (y[:, None] * q[..., None] * (places.cpu().view(4, 2, 1) + 1)).sum(1)
    again.square().sum().backward()
    assert_near(back.detach(), again.detach())
    assert_near(x.grad, y.grad)
    assert_near(probs.grad, q.grad)
    few, _ = npu.npu_moe_token_permute(x.detach(), experts, num_out_tokens=3)
    assert_near(few, permuted.detach().cpu()[:3])


def test_rows_of_ranks_are_ordered_by_expert(npu):
    tokens = torch.arange(6.0)[:, None]
    moved, _, order, totals = npu.npu_moe_re_routing(tokens.npu(), torch.tensor([[1, 2], [2, 1]]).npu())
    assert moved.flatten().tolist() == order.tolist() == [0, 3, 4, 1, 2, 5] and totals.tolist() == [3, 3]


def test_logits_beside_the_likely_ones_are_hidden(npu):
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [4.0, 0.0, 3.9, 0.0]])
    found = npu.npu_top_k_top_p(logits.npu(), k=torch.tensor([2, 4], dtype=torch.int32).npu())
    assert found[0].isinf().tolist() == [True, False, False, True] and not found[1].isinf().any()
    found = npu.npu_top_k_top_p(logits.npu(), p=torch.tensor([0.5, 0.9]).npu())
    assert found.isinf().tolist() == [[True, False, True, True], [False, True, False, True]]


def test_norms_and_activations_are_quantised(npu):
    x, gamma, beta, offset = torch.randn(4, 32).half(), torch.rand(32).half(), torch.rand(32).half(), 3.0
    normed = F.rms_norm(x.float(), (32,), gamma.float(), 1e-6) + beta.float()
    scale, shift = torch.tensor([0.05]).half(), torch.tensor([offset]).half()
    keys = {"offset": shift.npu(), "beta": beta.npu()}
    values, rstd = npu.npu_rms_norm_quant_v2(x.npu(), gamma.npu(), scale.npu(), **keys)
    assert_near(values.float(), (normed / scale.float() + offset).round().clamp(-128, 127), 1.01)
    assert_near(rstd, x.float().square().mean(1, keepdim=True).add(1e-6).rsqrt())
    values, _ = npu.npu_rms_norm_quant_v2(x.npu(), gamma.npu(), (1 / scale).npu(), div_mode=False, **keys)
    assert_near(values.float(), (normed / scale.float() + offset).round().clamp(-128, 127), 1.01)

    gelu = F.gelu(x.float(), approximate="tanh")
    values, none = npu.npu_gelu_quant(
        x.npu(),
        input_scale=(1 / scale).npu(),
        input_offset=shift.npu(),
        approximate="tanh",
        quant_mode="static",
    )
    assert none is None
    assert_near(values.float(), (gelu / scale.float() + offset).round().clamp(-128, 127), 1.01)
    values, scales = npu.npu_gelu_quant(x.npu(), approximate="tanh")
    assert_near(values.float() * scales[:, None], gelu, 0.05)
    with pytest.raises(RuntimeError, match="quant_mode 'tensor' is not one of static, dynamic"):
        npu.npu_gelu_quant(x.npu(), quant_mode="tensor")
    with pytest.raises(RuntimeError, match="quant_mode static needs input_scale"):
        npu.npu_gelu_quant(x.npu(), quant_mode="static")


def test_rows_have_the_scales_of_their_groups(npu):
    x, scale, offset = torch.randn(5, 8), torch.rand(3, 8) * 30, torch.tensor([2.0])
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    found = npu.npu_group_quant(x.npu(), scale.npu(), ends.npu(), offset=offset.npu(), dst_dtype=torch.qint8)
    expected = torch.cat((x[:2] * scale[0], x[2:] * scale[2])) + 2
    assert_near(found, expected.round().clamp(-128, 127).to(torch.int8), 0)
    with pytest.raises(RuntimeError, match="npu_group_quant: the simulator makes int8"):
        npu.npu_group_quant(x.npu(), scale.npu(), ends.npu(), dst_dtype=torch.quint4x2)


def test_products_of_groups_are_gated_and_quantised(npu):
    x, weight = int8(6, 8), int8(2, 8, 16)
    columns, tokens, ends = torch.rand(2, 16), torch.rand(6), torch.tensor([2, 5])
    values, scales, _ = npu.npu_grouped_matmul_swiglu_quant(
        x.npu(), weight.npu(), ends.npu(), columns.npu(), tokens.npu()
    )
    rows = torch.cat(
        [x[a:b].float() @ weight[i].float() * columns[i] for i, (a, b) in enumerate(((0, 2), (2, 5)))]
    )
    left, right = (rows * tokens[:5, None]).chunk(2, -1)
    expected = F.silu(left) * right
    assert_near(scales[:5], expected.abs().amax(1) / 127)
    assert_near(values[:5].float(), (expected / (expected.abs().amax(1, keepdim=True) / 127)).round(), 1.01)
    assert not values[5:].any() and not scales[5:].any()


@pytest.mark.parametrize("with_offset", [False, True])
def test_a_scale_is_searched_among_steps_of_the_bound(npu, with_offset):
    """Values that are all kept are rounded by half a scale at most."""
    data = torch.rand(4, 64) * 2 - (0.5 if with_offset else 1)
    low, high = data.min().view(1), data.max().view(1)
    counts = torch.histc(data, 128, float(low), float(high)).cumsum(0).int()
    scale, offset = npu.npu_ifmr(
        *(x.npu() for x in (data, low, high, counts)), 1.0, 1.0, 0.7, 1.3, 0.01, with_offset
    )
    scale, offset = scale.cpu(), offset.cpu()
    assert offset.item() == 0 or with_offset
    restored = (((data / scale).round() + offset).clamp(-128, 127) - offset) * scale
    assert (restored - data).abs().max() < 2 * scale.item()
    assert 0.005 < scale.item() < 0.011
