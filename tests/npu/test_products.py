"""Matrix products, norms and activations under torch_npu's names, on simulated NPUs against the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def test_gradients_of_groups_are_added_in_float32(npu):
    x, y, total = torch.randn(6, 4).half(), torch.randn(6, 3).half(), torch.randn(8, 3)
    expected = total + torch.cat((x[:2].t().float() @ y[:2].float(), x[2:].t().float() @ y[2:].float()))
    place, ends = total.npu(), torch.tensor([2, 6]).npu()
    assert_near(npu.npu_grouped_matmul_add(place, x.npu(), y.npu(), ends), expected)
    assert_near(place, total, 0)
    npu.npu_grouped_matmul_add_(place, x.npu(), y.npu(), torch.tensor([2, 4]).npu(), group_list_type=1)
    assert_near(place, expected)
    with pytest.raises(RuntimeError, match="the simulator knows transpose_x and group_type 2 only"):
        npu.npu_grouped_matmul_add_(place, x.npu(), y.npu(), ends, group_type=0)


def test_products_of_turned_batches(npu):
    x, weight = torch.randn(5, 4, 8), torch.randn(4, 8, 6)
    expected = (x.transpose(0, 1) @ weight).transpose(0, 1)
    orders = {"perm_x1": [1, 0, 2], "perm_x2": [0, 1, 2], "perm_y": [1, 0, 2]}
    assert_near(npu.npu_transpose_batchmatmul(x.npu(), weight.npu(), **orders), expected)
    split = npu.npu_transpose_batchmatmul(x.npu(), weight.npu(), batch_split_factor=2, **orders)
    assert_near(split, expected.reshape(5, 2, 12).transpose(0, 1))
    scale = npu.npu_trans_quant_param(torch.full((24,), 2.0).npu())
    whole = npu.npu_transpose_batchmatmul(x.half().npu(), weight.half().npu(), scale=scale, **orders)
    assert whole.shape == (5, 1, 24)
    assert_near(whole.float(), (expected.reshape(5, 1, 24) * 2).round(), 1.01)
    for name in orders:
        with pytest.raises(RuntimeError, match=f"{name} should be .* but got \\[1, 1, 2\\]"):
            npu.npu_transpose_batchmatmul(x.npu(), weight.npu(), **orders | {name: [1, 1, 2]})
    with pytest.raises(RuntimeError, match="The weight's type supported for float16, float32 and bfloat16"):
        npu.npu_transpose_batchmatmul(x.npu(), weight.long().npu(), **orders)


@pytest.mark.parametrize(
    "kind, after",
    [
        ("", lambda y, z: y),
        ("add", torch.add),
        ("mul", torch.mul),
        ("relu", lambda y, z: y.relu()),
        ("gelu_erf", lambda y, z: F.gelu(y)),
        ("gelu_tanh", lambda y, z: F.gelu(y, approximate="tanh")),
    ],
)
def test_what_follows_a_product(npu, kind, after):
    x, y, z, bias = torch.randn(3, 4), torch.randn(4, 5), torch.randn(3, 5), torch.randn(5)
    more = {"x3": z.npu()} if kind in ("add", "mul") else {}
    found = npu.npu_fused_matmul(x.npu(), y.npu(), bias=bias.npu(), fused_op_type=kind, **more)
    assert_near(found, after(x @ y + bias, z))


def test_what_may_not_follow_a_product(npu):
    x = torch.ones(2, 2).npu()
    with pytest.raises(RuntimeError, match="fused_op_type 'tanh' is not one of"):
        npu.npu_fused_matmul(x, x, fused_op_type="tanh")


def test_a_sum_and_its_norm_in_place(npu):
    x, y, gamma = torch.randn(3, 8), torch.randn(3, 8), torch.rand(8)
    normed = F.rms_norm(x + y, (8,), gamma, 1e-6)
    first, second = x.npu(), y.npu()
    scales, *copies = npu.npu_add_rms_norm_v2_functional(first, second, gamma.npu())
    assert_near(first, x, 0)
    assert_near(copies[0], normed)
    assert_near(copies[1], x + y)
    again = npu.npu_add_rms_norm_v2(first, second, gamma.npu())
    assert_near(again, (x + y).square().mean(1, keepdim=True).add(1e-6).rsqrt())
    assert torch.equal(again, scales)
    assert_near(first, normed)
    assert_near(second, x + y)


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_gated_unit_within_limits(npu, interleaved):
    x = torch.randn(4, 3, 8) * 3
    gate, up = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    gate, up = gate.clamp(max=1.5), up.clamp(-1.5, 1.5)
    expected = gate * torch.sigmoid(0.7 * gate) * (up + 1.2)
    keys = {"dim": -1, "alpha": 0.7, "limit": 1.5, "bias": 1.2, "interleaved": interleaved}
    assert_near(npu.npu_clipped_swiglu(x.npu(), **keys), expected)
    rows, expected = x.flatten(0, 1), expected.flatten(0, 1)
    expected[5:] = 0
    assert_near(npu.npu_clipped_swiglu(rows.npu(), group_index=torch.tensor([2, 3]).npu(), **keys), expected)


@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("cache_mode", ["default", "interleave"])
def test_positions_in_time_height_and_width(npu, mode, cache_mode):
    tokens, size, width, section = 5, 16, 12, [2, 2, 2]
    query, key = torch.randn(tokens, 2 * size), torch.randn(tokens, size)
    table, positions = torch.randn(9, width), torch.randint(0, 9, (3, tokens))
    taken = [0, 0, 1, 1, 2, 2] if cache_mode == "default" else [0, 1, 2, 0, 1, 2]

    def turned(x, positions):
        angles = table[positions]
        if positions.dim() == 2:
            angles = torch.stack([angles[axis % 3, :, at] for at, axis in enumerate(taken * 2)], -1)
        cos, sin = (part[:, None] for part in angles.chunk(2, -1))
        heads = x.view(tokens, -1, size)
        part = heads[..., :width]
        a, b = part.chunk(2, -1) if mode == "half" else (part[..., ::2], part[..., 1::2])
        pair = (a * cos - b * sin, b * cos + a * sin)
        out = torch.cat(pair, -1) if mode == "half" else torch.stack(pair, -1).flatten(-2)
        return torch.cat((out, heads[..., width:]), -1).view(x.shape)

    for where in (positions, positions[0]):
        found = npu.npu_mrope(
            where.npu(), query.npu(), key.npu(), table.npu(), size, mrope_section=section, rotary_mode=mode,
            cache_mode=cache_mode,
        )  # fmt: skip
        assert_near(found[0], turned(query, where))
        assert_near(found[1], turned(key, where))
    with pytest.raises(RuntimeError, match="cache_mode only support default or interleave, got 'other'"):
        npu.npu_mrope(positions.npu(), query.npu(), key.npu(), table.npu(), size, cache_mode="other")


def test_signs_as_bits(npu):
    x = torch.randn(32)
    packed = npu.npu_sign_bits_pack(x.npu(), 2)
    assert packed.shape == (2, 2) and packed.dtype == torch.uint8
    assert_near(npu.npu_sign_bits_unpack(packed.flatten(), 4, torch.float32), x.sign().view(4, 8), 0)


def test_sums_of_strides(npu):
    x = torch.randn(2, 20, 1, 1, 16)
    y = torch.randn(2, 18, 1, 1, 16)
    expected = x[:, 3:19] + F.pad(y[:, 5:], (0, 0, 0, 0, 0, 0, 0, 3))
    assert_near(npu.npu_stride_add(x.npu(), y.npu(), 3, 5, 1), expected)


def test_adam_of_bert_and_adam_with_the_largest_moments(npu):
    start, grad = torch.randn(6), torch.randn(6)
    moments = torch.rand(6), torch.rand(6)
    first, second = moments[0] * 0.9 + grad / 2 * 0.1, moments[1] * 0.99 + (grad / 2) ** 2 * 0.01
    expected = start - 0.1 * (first / (second.sqrt() + 1e-6) + 0.01 * start)
    places = [x.npu() for x in (start, *moments)]
    npu.npu_bert_apply_adam(0.1, 0.9, 0.99, 1e-6, grad.npu(), 1.0, 2.0, 0.01, out=tuple(places))
    for place, value in zip(places, (expected, first, second), strict=True):
        assert_near(place, value)
    with pytest.raises(RuntimeError, match="the simulator knows adam_mode 0 without step_size"):
        npu.npu_bert_apply_adam(
            0.1, 0.9, 0.99, 1e-6, grad.npu(), 1.0, 2.0, 0.01, adam_mode=1, out=tuple(places)
        )

    plain = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.01, amsgrad=True)
    card, *states = (x.npu() for x in (start, torch.zeros(6), torch.zeros(6)))
    largest = torch.zeros(6).npu()
    for step in range(2):
        plain.grad = grad * (1 - step * 0.9)
        optimizer.step()
        torch.ops.npu.npu_apply_adam_w.out(
            0.9**step, 0.999**step, 0.1, 0.01, 0.9, 0.999, 1e-8, plain.grad.npu(), largest, True, False,
            out=[card, *states],
        )  # fmt: skip
    assert_near(card, plain.detach())


@pytest.mark.parametrize("shape", [(3, 4), (3, 6, 7, 2)])
def test_a_group_norm_and_its_activation_train(npu, shape):
    x, weight, bias = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
    plain, card = (
        [value.clone().to(device).requires_grad_() for value in (x, weight, bias)]
        for device in ("cpu", "npu")
    )
    y = F.group_norm(plain[0], 2, *plain[1:], 1e-5)
    expected = y * torch.sigmoid(1.5 * y)
    found = npu.npu_group_norm_swish(card[0], 2, *card[1:], eps=1e-5, swish_scale=1.5)[0]
    assert_near(found.detach(), expected.detach())
    expected.square().sum().backward()
    found.square().sum().backward()
    for ours, theirs in zip(card, plain, strict=True):
        assert_near(ours.grad, theirs.grad)


def test_rows_by_an_index_train(npu):
    x, index = torch.randn(5, 3), torch.tensor([[0, 4], [4, 2]])
    plain, card = x.clone().requires_grad_(), x.npu().requires_grad_()
    found = npu.npu_gather_sparse_index(card, index.npu())
    assert_near(found.detach(), x[index])
    found.square().sum().backward()
    plain[index].square().sum().backward()
    assert_near(card.grad, plain.grad)


def test_softmaxes_in_place_and_with_a_bias_of_positions(npu):
    scores, values, upstream = torch.randn(2, 4, 5), torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    plain, place = scores.clone().requires_grad_(), scores.npu()
    (plain.softmax(-1) @ values).backward(upstream)
    npu.npu_attn_softmax_(place)
    assert_near(place, scores.softmax(-1))
    npu.npu_attn_softmax_backward_(place, upstream.npu(), values.npu())
    assert_near(place, plain.grad)
    x, mask, bias = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 1, 4, 4), torch.randn(1, 1, 3, 4, 4)
    found = npu.npu_masked_softmax_with_rel_pos_bias(x.npu(), mask.npu(), bias.npu(), 0.5)
    assert_near(found, (x * 0.5 + mask + bias).softmax(-1))
    assert_near(npu.npu_masked_softmax_with_rel_pos_bias(x.npu(), None, bias.npu()), (x + bias).softmax(-1))


def test_rows_take_the_products_of_their_adapters(npu):
    y, x, indices = torch.randn(4, 8), torch.randn(4, 6), torch.tensor([1, 0, 2, 1], dtype=torch.int32)
    down, up = torch.randn(2, 1, 3, 6), torch.randn(2, 1, 5, 3)
    expected = y.clone()
    for row in (0, 1, 3):  # there is no adapter 2
        adapter = indices[row].item()
        expected[row, 2:7] += 0.5 * up[adapter, 0] @ (down[adapter, 0] @ x[row])
    arguments = [t.npu() for t in (x, up, indices, down)]
    keys = {"layer_idx": 0, "scale": 0.5, "y_offset": 2, "y_slice_size": 5}
    card = y.npu()
    assert_near(npu.npu_batch_gather_matmul(card, *arguments, **keys), expected)
    assert_near(card, y, 0)
    npu.npu_batch_gather_matmul_(card, *arguments, **keys)
    assert_near(card, expected)


def test_rows_are_added_at_their_index(npu):
    x, rows, index = torch.zeros(4, 3), torch.randn(2, 3), torch.tensor([2, 2])
    expected = x.index_add(0, index, rows, alpha=2)
    assert_near(torch.ops.npu._npu_index_add(x.npu(), index.npu(), rows.npu(), alpha=2), expected)
