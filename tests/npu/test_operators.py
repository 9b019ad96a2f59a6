"""Operators of simulated NPUs against their definitions on the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.npu_sim


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert found.device.type == "npu"
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


def assert_same_on_both(function, *inputs: torch.Tensor) -> None:
    """Values and gradients of a function of tensors are those of the CPU."""
    sides = []
    for device in ("cpu", "npu"):
        leaves = [x.detach().to(device).requires_grad_() for x in inputs]
        out = function(*leaves)
        out.square().sum().backward()
        sides.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for expected, found in zip(*sides, strict=True):
        assert_near(found, expected)


def test_gradients_go_through_operators_made_of_others():
    assert_same_on_both(torch.true_divide, draw(3, 4), draw(3, 4).abs() + 1)
    assert_same_on_both(torch.cov, draw(3, 6))
    assert_same_on_both(torch.corrcoef, draw(3, 6))


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_layers_train(kind, bias):
    torch.manual_seed(0)
    plain = kind(4, 5, num_layers=2, bias=bias)
    card = kind(4, 5, num_layers=2, bias=bias).npu()
    card.load_state_dict(plain.state_dict())
    x = draw(7, 2, 4)
    for layer, inputs in ((plain, x), (card, x.npu())):
        layer(inputs)[0].square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert_near(card.get_parameter(name).grad, parameter.grad)


def test_gradients_are_found_below_what_watches_operators(npu):
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(3, 8, device="npu", requires_grad=True)
    npu.npu_swiglu(x).square().sum().backward()
    expected, x.grad = x.grad, None
    with FlopCounterMode(display=False):
        npu.npu_swiglu(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.float32])
def test_tokens_of_experts_are_counted(kind):
    chosen = torch.tensor([0, 3, 3, 1, 3], dtype=kind, device="npu")
    counts = torch.histc(chosen, bins=4, min=0, max=3)
    assert counts.dtype == kind and counts.tolist() == [1, 1, 0, 3]


def test_results_may_be_given_a_place():
    x = draw(3, 4)
    out = torch.empty(3, device="npu")
    assert torch.logsumexp(x.npu(), 1, out=out) is out
    assert_near(out, torch.logsumexp(x, 1))


def test_products_of_a_wider_type():
    a, b = draw(2, 3, 4, dtype=torch.float16), draw(2, 4, 5, dtype=torch.float16)
    wide = a.float() @ b.float()
    assert_near(torch.mm(a[0].npu(), b[0].npu(), out_dtype=torch.float32), wide[0])
    assert_near(torch.bmm(a.npu(), b.npu(), out_dtype=torch.float32), wide)
    bias = draw(3, 5, dtype=torch.float32)
    added = torch.addmm(bias.npu(), a[0].npu(), b[0].npu(), out_dtype=torch.float32, beta=2)
    assert_near(added, wide[0] + 2 * bias)
    assert_near(torch.baddbmm(bias.npu(), a.npu(), b.npu(), out_dtype=torch.float32), wide + bias)


def test_types_are_cast_and_gradients_come_back(npu):
    x = draw(3).npu().requires_grad_()
    half = npu.npu_dtype_cast(x, torch.float16)
    assert half.dtype == torch.float16
    half.sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.tolist() == [1, 1, 1]
    assert npu.npu_dtype_cast(x.detach(), torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="the simulator has no type number 290"):
        npu.npu_dtype_cast(x.detach(), npu.hifloat8)


def test_formats_take_a_customized_type(npu):
    x = draw(32, 32, dtype=torch.float16)
    assert_near(npu.npu_format_cast(x.npu(), 29, customize_dtype=3), x, 0)


def test_groups_of_rows_have_matrices_of_their_own(npu):
    x, weights = draw(6, 4), [draw(4, 3), draw(4, 3) * 2]
    expected = torch.cat((x[:2] @ weights[0], x[2:] @ weights[1]))
    on_card = [weight.npu() for weight in weights]
    assert_near(npu.npu_grouped_matmul([x.npu()], on_card, group_list=[2, 6], split_item=3)[0], expected)
    parts = npu.npu_grouped_matmul([x.npu()], on_card, group_list=[2, 6], split_item=1)
    assert_near(torch.cat(parts), expected)
    ends = torch.tensor([2, 6]).npu()
    columns = npu.npu_grouped_matmul(
        [x.t().contiguous().npu()], [draw(6, 3).npu()], group_list=ends, split_item=3, group_type=2
    )[0]
    assert_near(columns, torch.stack((x[:2].t() @ draw(6, 3)[:2], x[2:].t() @ draw(6, 3)[2:])))


def test_convolutions_under_torch_npus_names(npu):
    x, weight, bias = draw(2, 4, 6, 6), draw(6, 2, 3, 3), draw(6)

    def convolved(x, weight, bias):
        if x.is_cpu:
            return F.conv2d(x, weight, bias, 2, 1, 1, 2)
        return npu.npu_convolution(x, weight, bias, [2, 2], [1, 1], [1, 1], 2)

    assert_same_on_both(convolved, x, weight, bias)
    found = npu.npu_conv2d(x.npu(), weight.npu(), bias.npu(), [2, 2], [1, 1], [1, 1], 2)
    assert_near(found, convolved(x, weight, bias))
    back = draw(4, 3, 3, 3)

    def transposed(x, weight):
        if x.is_cpu:
            return F.conv_transpose2d(x, weight, None, 2, 1, 1)
        return npu.npu_convolution_transpose(x, weight, None, [1, 1], [1, 1], [2, 2], [1, 1], 1)

    assert_same_on_both(transposed, x, back)
    depthwise = draw(4, 1, 3, 3)
    found = torch._C._nn._conv_depthwise2d(x.npu(), depthwise.npu(), [3, 3], None, [1, 1], [1, 1], [1, 1])
    assert_near(found, F.conv2d(x, depthwise, None, 1, 1, 1, 4))


@pytest.mark.parametrize("name", ["max", "min"])
def test_extremes_with_narrow_indices(npu, name):
    def extreme(x):
        if x.is_cpu:
            return getattr(torch, name)(x, 1).values
        return getattr(npu, f"npu_{name}")(x, 1)[0]

    assert_same_on_both(extreme, draw(3, 5))
    values, indices = getattr(npu, f"npu_{name}")(draw(3, 5).npu(), 1, keepdim=True)
    assert values.shape == indices.shape == (3, 1) and indices.dtype == torch.int32


def test_slices_and_orders(npu):
    x = torch.arange(12.0).view(3, 4)
    card = x.npu()
    assert npu.npu_one_hot(torch.tensor([2, 5], device="npu"), depth=3).tolist() == [[0, 0, 1], [0, 0, 0]]
    assert_near(npu.npu_pad(card, [1, 0, 0, 2]), F.pad(x, (0, 2, 1, 0)))
    assert_near(npu.npu_slice(card, [1, 0], [2, 3]), x[1:, :3])
    assert_near(npu.npu_stride_copy(card, [2, 2], [4, 1], 1), x.as_strided((2, 2), (4, 1), 1))
    assert_near(npu.npu_indexing(card, [0, 3], [3, 0], [2, -2]), x[::2].flip(1)[:, :3:2])
    assert_near(
        npu.npu_indexing(card, [0, 1], [0, 0], [1, 1], ellipsis_mask=1, shrink_axis_mask=2), x[..., 1]
    )
    assert_near(npu.npu_indexing(card, [0, 1], [0, 2], [1, 1], begin_mask=2, new_axis_mask=1), x[None, :2])
    assert_near(npu.npu_sort_v2(card, descending=True), x.flip(1))


def test_scatters(npu):
    x, row = draw(2, 2), torch.tensor([9.0, 8.0])
    expected = x.clone()
    expected[0, 0], expected[1, 1] = 9, 8
    found = npu.npu_scatter(x.npu(), torch.tensor([0, 1], dtype=torch.int32).npu(), row.npu(), 0)
    assert_near(found, expected)
    data, updates = torch.ones(1, 1, 3, 2), torch.full((1, 1, 1, 2), 3.0)
    changed = npu.scatter_update(data.npu(), torch.tensor([1]).npu(), updates.npu(), -2)
    assert changed[0, 0].tolist() == [[1, 1], [3, 3], [1, 1]]
    place = data.npu()
    npu.scatter_update_(place, torch.tensor([2]).npu(), updates.npu(), -2)
    assert place[0, 0].tolist() == [[1, 1], [1, 1], [3, 3]]
    found = npu.npu_scatter_nd_update(x.npu(), torch.tensor([[1]]).npu(), row[None].npu())
    assert_near(found, torch.stack((x[0], row)))


def test_softmaxes(npu):
    x, mask = draw(2, 2, 32, 32), torch.ones(32, 32, dtype=torch.bool).triu(1)

    def masked(x):
        if x.is_cpu:
            return (x * 0.5).masked_fill(mask, -10000).softmax(-1)
        return npu.npu_scaled_masked_softmax(x, mask.npu(), 0.5, False)

    assert_same_on_both(masked, x)
    labels = draw(4, 3).softmax(-1)

    def cross_entropy(x):
        if x.is_cpu:
            return F.cross_entropy(x, labels, reduction="none")
        return npu.npu_softmax_cross_entropy_with_logits(x, labels.npu())

    assert_same_on_both(cross_entropy, draw(4, 3))


def test_dropout_after_a_softmax_keeps_its_mean_and_its_mask(npu):
    x = draw(4, 8, 128, 128).npu().requires_grad_()
    _, weights, kept = npu.npu_dropout_with_add_softmax(x, torch.zeros_like(x), 2.0, 0.5, -1)
    assert_near(weights.detach(), (x.detach().cpu() * 2).softmax(-1))
    share = (kept != 0).float().mean().item()
    assert 0.49 < share < 0.51
    kept.sum().backward()
    weights_again = (again := x.detach().cpu().requires_grad_()).mul(2).softmax(-1)
    (weights_again * (kept.detach().cpu() != 0) * 2).sum().backward()
    assert_near(x.grad, again.grad)


def test_a_norm_of_two_types_is_of_the_wider_one(npu):
    half, wide = draw(2, 8, dtype=torch.float16).npu(), draw(2, 8).npu()
    one, zero = torch.ones(8).npu(), torch.zeros(8).npu()
    assert npu.npu_add_layer_norm(half, wide, one, zero)[0].dtype == torch.float32
    assert npu.npu_add_layer_norm(half, half, one, zero)[0].dtype == torch.float16

    def normed(a, b, gamma, beta):
        if a.is_cpu:
            return F.layer_norm(a + b, (8,), gamma, beta)
        return npu.npu_add_layer_norm(a, b, gamma, beta)[0]

    assert_same_on_both(normed, draw(2, 8), draw(3, 8)[:2], draw(8), draw(8))


def heads(x: torch.Tensor) -> torch.Tensor:
    """[B, N, S, D] of [B, S, N * 8]."""
    return x.unflatten(2, (-1, 8)).transpose(1, 2)


def test_a_full_mask_that_is_not_given_hides_nothing(npu):
    q, k, v = draw(2, 4, 16), draw(2, 5, 16), draw(2, 5, 16)
    found = npu.npu_fusion_attention(q.npu(), k.npu(), v.npu(), 2, "BSH", scale=0.3, sparse_mode=1)[0]
    expected = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), scale=0.3)
    assert_near(found, expected.transpose(1, 2).flatten(2))


def test_attention_of_prompts_and_of_single_tokens(npu):
    q, k, v = draw(2, 4, 32), draw(2, 6, 16), draw(2, 6, 16)
    keys = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BSH", "scale_value": 0.3}
    wide = [heads(x).repeat_interleave(2, 1) for x in (k, v)]
    seen = torch.ones(4, 6, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(heads(q), *wide, seen, scale=0.3).transpose(1, 2).flatten(2)
    triangle = torch.ones(2048, 2048, dtype=torch.bool).triu(1).npu()
    found = npu.npu_prompt_flash_attention(
        q.npu(), k.npu(), v.npu(), atten_mask=triangle, sparse_mode=2, **keys
    )
    assert_near(found, expected)
    found = npu.npu_incre_flash_attention(q[:, :1].npu(), k.npu(), v.npu(), actual_seq_lengths=[3, 6], **keys)
    few = F.scaled_dot_product_attention(heads(q)[:1, :, :1], *(x[:1, :, :3] for x in wide), scale=0.3)
    assert_near(found[:1], few.transpose(1, 2).flatten(2))


def test_attention_of_inference_from_a_paged_cache(npu):
    q, k, v = draw(2, 2, 1, 8), draw(2, 2, 6, 8), draw(2, 2, 6, 8)
    table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
    caches = []
    for x in (k, v):
        blocks = torch.zeros(4, 2, 4, 8)
        padded = F.pad(x, (0, 0, 0, 2)).unflatten(2, (2, 4)).transpose(1, 2)
        blocks[table.long()] = padded
        caches.append(blocks.npu())
    keys = {"num_heads": 2, "scale": 0.3, "input_layout": "BNSD", "softmax_lse_flag": True}
    lengths = {"actual_seq_lengths_kv": [6, 6]}
    out, lse = npu.npu_fused_infer_attention_score(
        q.npu(), *caches, block_table=table.npu(), block_size=4, **lengths, **keys
    )
    assert_near(out, F.scaled_dot_product_attention(q, k, v, scale=0.3))
    assert_near(lse, (q @ k.transpose(2, 3) * 0.3).logsumexp(-1, keepdim=True))
    plain, _ = npu.npu_fused_infer_attention_score(q.npu(), k.npu(), v.npu(), **keys)
    assert_near(plain, out.cpu())


def test_packed_attention_of_inference_with_separate_rotary_parts(npu):
    q, k, v = draw(5, 2, 8), draw(7, 2, 8), draw(7, 2, 8)
    q_rope, k_rope = draw(5, 2, 4), draw(7, 2, 4)
    out, _ = npu.npu_fused_infer_attention_score_v2(
        q.npu(), k.npu(), v.npu(), query_rope=q_rope.npu(), key_rope=k_rope.npu(), actual_seq_qlen=[2, 5],
        actual_seq_kvlen=[3, 7], num_query_heads=2, softmax_scale=0.3, input_layout="TND",
    )  # fmt: skip
    for a, b, c, d in ((0, 2, 0, 3), (2, 5, 3, 7)):
        whole = [
            torch.cat(pair, -1).transpose(0, 1) for pair in ((q[a:b], q_rope[a:b]), (k[c:d], k_rope[c:d]))
        ]
        expected = F.scaled_dot_product_attention(*whole, v[c:d].transpose(0, 1), scale=0.3)
        assert_near(out[a:b], expected.transpose(0, 1))


def test_a_refused_argument_has_the_tail_of_torch_npus_errors():
    with pytest.raises(
        RuntimeError, match="rounding_mode to be one of .*(?s:.)*ERR01001 OPS invalid parameter"
    ):
        torch.div(torch.ones(2, device="npu"), 2, rounding_mode="test")


def test_an_operator_that_torch_npu_lacks_warns_and_runs_on_the_cpu():
    code = "import torch; a = torch.ones(2, device='npu'); print(torch.fmax(a, a + 1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "tensor([2., 2.], device='npu:0')" in done.stdout
    assert (
        "CAUTION: The operator 'aten::fmax.out' is not currently supported on the NPU backend" in done.stderr
    )


def test_sparse_tensors_come_together():
    indices = torch.tensor([[1, 0, 1], [2, 1, 2]])
    doubled = torch.sparse_coo_tensor(indices, draw(3, 4), (2, 3, 4))
    found = doubled.npu().coalesce()
    assert found.indices().cpu().equal(doubled.coalesce().indices())
    assert_near(found.values(), doubled.coalesce().values())
    plain = torch.eye(3).npu().to_sparse()
    assert plain.device.type == "npu"
    assert_near(plain.to_dense(), torch.eye(3))
    table = torch.nn.Embedding(5, 4, sparse=True).npu()
    before = table.weight.detach().clone()
    table(torch.tensor([1, 3, 3]).npu()).sum().backward()
    torch.optim.SGD(table.parameters(), lr=0.1).step()
    assert (before != table.weight).any(1).cpu().tolist() == [False, True, False, True, False]


def test_a_mask_of_bits_is_drawn_before_its_tensor(npu):
    torch.npu.manual_seed(1)
    mask = npu.npu_dropout_gen_mask([64, 64], p=0.25, dtype=torch.float32, device="npu")
    assert mask.dtype == torch.uint8 and mask.device.type == "npu"
    kept = npu.npu_dropout_do_mask(torch.ones(64, 64).npu(), mask, 0.25)[0] > 0
    assert 0.7 < kept.float().mean().item() < 0.8
