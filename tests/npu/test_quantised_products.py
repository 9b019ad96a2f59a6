"""Products that quantise what they are given, on simulated NPUs, against the same arithmetic step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-9, 9, shape, dtype=torch.int8)


def test_rows_are_quantised_for_a_product(npu):
    x, weight, scale = torch.randn(5, 16).half(), int8(8, 16), torch.rand(8)
    rows = x.float().abs().amax(-1, keepdim=True) / 127
    expected = (x.float() / rows).round() @ weight.float().t() * scale * rows
    found = npu.npu_quant_matmul_dequant(x.npu(), weight.npu(), scale.npu())
    assert found.dtype == torch.float16
    assert_near(found.float(), expected, 0.05)
    given, smooth = torch.tensor([0.02]), torch.rand(16).half()
    values = (x.float() * smooth.float() / given).round().clamp(-128, 127)
    found = npu.npu_quant_matmul_dequant(
        x.npu(),
        weight.npu(),
        scale.npu(),
        x_scale=given.npu(),
        smooth_scale=smooth.npu(),
        quant_mode="pertensor",
    )
    assert_near(found.float(), values @ weight.float().t() * scale * given, 0.05)


def test_groups_of_rows_are_quantised_for_their_products(npu):
    x, weights, scales = torch.randn(6, 16).half(), int8(3, 8, 16), torch.rand(3, 8)
    ends = torch.tensor([2, 2, 5])
    found = npu.npu_quant_grouped_matmul_dequant(x.npu(), weights.npu(), scales.npu(), ends.npu())
    for number, (start, end) in enumerate(((0, 2), (2, 2), (2, 5))):
        if end > start:
            expected = npu.npu_quant_matmul_dequant(
                x[start:end].npu(), weights[number].npu(), scales[number].npu()
            )
            assert torch.equal(found[start:end], expected)


@pytest.mark.parametrize("approximate", ["gelu_tanh", "gelu_erf"])
def test_a_product_of_integers_with_gelu(npu, approximate):
    x, weight, rows, columns, bias = (
        int8(4, 16),
        int8(16, 8),
        torch.rand(4),
        torch.rand(8) / 9,
        torch.randn(8),
    )
    total = x.float() @ weight.float() * columns * rows[:, None] + bias
    expected = F.gelu(total, approximate="tanh" if approximate == "gelu_tanh" else "none")
    found = npu.npu_quant_matmul_gelu(
        *(value.npu() for value in (x, weight, rows, columns)), bias=bias.npu(), approximate=approximate
    )
    assert found.dtype == torch.float16
    assert_near(found.float(), expected, 0.02)


def nibbles(words: torch.Tensor) -> torch.Tensor:
    found = words.cpu().long()[..., None] >> torch.arange(0, 32, 4) & 15
    return torch.where(found > 7, found - 16, found).flatten(-2)


@pytest.mark.parametrize("ratio", [None, 0.7848])
def test_small_matrices_on_both_sides_give_int4(npu, ratio):
    x, left, right = torch.randn(3, 4, 16).half(), torch.randn(4, 4).half(), torch.randn(16, 16).half()
    turned = left.float() @ (x.float() @ right.float())
    scale = turned.abs().amax((1, 2)) / (7 * (ratio or 1))
    values, found = npu.npu_kronecker_quant(x.npu(), left.npu(), right.npu(), ratio)
    assert values.shape == (3, 4, 2) and values.dtype == torch.int32
    assert_near(found, scale, 0.01)
    assert (nibbles(values) - turned / scale[:, None, None]).abs().max() < 0.6
    with pytest.raises(RuntimeError, match="must be divisible by 8"):
        npu.npu_kronecker_quant(x[..., :4].npu(), left.npu(), right[:4, :4].npu())


def test_rows_are_turned_in_pieces_and_quantised(npu):
    x, rotation = torch.randn(4, 32).bfloat16(), torch.randn(16, 16).bfloat16()
    turned = (x.float().view(4, 2, 16) @ rotation.float()).view(4, 32).bfloat16()
    values, scale = npu.npu_rotate_quant(x.npu(), rotation.npu(), dst_dtype=torch.int8)
    expected, wanted = npu.npu_dynamic_quant(turned.npu())
    assert torch.equal(values, expected) and torch.equal(scale, wanted)


def test_a_convolution_of_integers(npu):
    x, weight, scale = int8(2, 3, 6, 6), int8(4, 3, 3, 3), torch.rand(4)
    expected = F.conv2d(F.pad(x.float(), (1, 1, 1, 1), value=2), weight.float(), stride=2)
    bits = scale.view(torch.int32).long()
    found = npu.npu_quant_conv2d(
        x.npu(), weight.npu(), bits.npu(), [2, 2], [1, 1], [1, 1], 1, 2, "rint", torch.float16
    )
    assert found.dtype == torch.float16
    assert_near(found.float(), expected * scale.view(-1, 1, 1), 0.3)
