"""Microscaled types of simulated NPUs: scales and values by their definition, products near those of floats."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim

FP8 = torch.float8_e4m3fn


def test_a_block_is_scaled_by_a_power_of_two(npu):
    x = torch.tensor([[0.0, 8, 64, 512]], dtype=torch.bfloat16)  # 512 = 2 ** 9, e4m3 has 2 ** 8
    values, scale = npu.npu_dynamic_mx_quant(x.npu(), dst_type=FP8)
    assert values.dtype == FP8 and values.cpu().float().tolist() == [[0, 4, 32, 256]]
    assert scale.tolist() == [[[127 + 1, 0]]]
    four, scale = npu.npu_dynamic_mx_quant(x.npu(), dst_type=npu.float4_e2m1fn_x2)
    assert scale.tolist() == [[[127 + 7, 0]]] and four.tolist() == [[0, 1 | 6 << 4]]  # 0, 0 | 0.5, 4
    assert npu.npu_dynamic_mx_quant((x * 0).npu(), dst_type=FP8)[1].tolist() == [[[0, 0]]]
    roomy = torch.full((1, 32), 500.0, dtype=torch.bfloat16)  # beyond 448 with the exponent alone
    assert npu.npu_dynamic_mx_quant(roomy.npu(), dst_type=FP8)[0].cpu().float()[0, 0] == 448
    values, scale = npu.npu_dynamic_mx_quant(roomy.npu(), dst_type=FP8, scale_alg=1)
    assert (values.cpu().float()[0, 0].item(), scale.tolist()) == (256, [[[127 + 1, 0]]])  # 250 to three bits


def test_halves_of_bytes_are_rounded_as_asked(npu):
    x = torch.tensor([[2.5, -2.5, 6.0, 1.75]], dtype=torch.float16)

    def rounded(mode: str) -> list[float]:
        bits, scale = npu.npu_dynamic_mx_quant(x.npu(), dst_type=npu.float4_e2m1fn_x2, round_mode=mode)
        return npu.npu_anti_mx_quant(bits, scale, dst_type=torch.float16, src_type=npu.float4_e2m1fn_x2)[
            0
        ].tolist()

    assert rounded("rint") == [2, -2, 6, 2]
    assert rounded("floor") == [2, -3, 6, 1.5]
    assert rounded("round") == [3, -3, 6, 2]
    with pytest.raises(RuntimeError, match="only rint is"):
        npu.npu_dynamic_mx_quant(x.npu(), dst_type=FP8, round_mode="floor")


def test_values_come_back_from_both_axes_and_of_groups(npu):
    x = torch.randn(200, 96).bfloat16()
    rows, row_scale, columns, column_scale = npu.npu_dynamic_mx_quant_with_dual_axis(x.npu(), dst_type=FP8)
    assert (row_scale.shape, column_scale.shape) == ((200, 2, 2), (4, 96, 2))
    for bits, scale, axis in ((rows, row_scale, -1), (columns, column_scale, 0)):
        back = npu.npu_anti_mx_quant(bits, scale, axis=axis, dst_type=torch.bfloat16, src_type=FP8)
        assert_near(back, x, 0.13)  # the largest of a block may be an eighth beyond the type's
    bits, scale = npu.npu_grouped_dynamic_mx_quant(
        x.npu(), torch.tensor([70, 200], dtype=torch.int32).npu(), dst_type=FP8
    )
    first = npu.npu_dynamic_mx_quant(x[:70].npu(), axis=0, dst_type=FP8)
    second = npu.npu_dynamic_mx_quant(x[70:].npu(), axis=0, dst_type=FP8)
    assert scale.shape == (200 // 64 + 2, 96, 2)
    assert_near(bits.float(), torch.cat([first[0], second[0]]).cpu().float(), 0)
    assert_near(scale, torch.cat([first[1], second[1]]).cpu(), 0)  # of 70 rows two pairs, of 130 three


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float4_e2m1fn_x2"])
def test_products_of_microscaled_matrices(npu, kind):
    number = getattr(npu, kind)
    a, b = torch.randn(5, 128).bfloat16(), torch.randn(6, 128).bfloat16()
    (qa, sa), (qb, sb) = (npu.npu_dynamic_mx_quant(x.npu(), dst_type=number) for x in (a, b))
    plain = [
        npu.npu_anti_mx_quant(q, s, dst_type=torch.float32, src_type=number) for q, s in ((qa, sa), (qb, sb))
    ]
    kinds = {"x1_dtype": number, "x2_dtype": number} if kind.startswith("float4") else {}
    found = npu.npu_quant_matmul(
        qa, qb.t(), sb.transpose(0, 1), scale_dtype=npu.float8_e8m0fnu, pertoken_scale=sa,
        pertoken_scale_dtype=npu.float8_e8m0fnu, output_dtype=torch.bfloat16, group_sizes=[1, 1, 32], **kinds,
    )  # fmt: skip
    assert_near(found, (plain[0].cpu() @ plain[1].cpu().t()).bfloat16(), 0.01)


def test_norms_and_gates_are_microscaled(npu):
    x, other, gamma = torch.randn(3, 128).bfloat16(), torch.randn(3, 128).bfloat16(), torch.rand(128)
    total = x + other
    rstd = torch.rsqrt(total.float().square().mean(-1, keepdim=True) + 1e-6)
    expected = npu.npu_dynamic_mx_quant((total.float() * rstd * gamma).bfloat16().npu(), dst_type=FP8)
    y, kept, scale, found = npu.npu_add_rms_norm_dynamic_mx_quant(
        x.npu(), other.npu(), gamma.npu(), dst_type=FP8
    )
    assert_near(y.float(), expected[0].cpu().float(), 0.07)
    assert_near(kept, total, 0)
    assert_near(scale, expected[1].cpu(), 0)
    assert_near(found, rstd)
    assert_near(npu.npu_rms_norm_dynamic_mx_quant(total.npu(), gamma.npu(), dst_type=FP8)[1], scale.cpu(), 0)
    left, right = x.float().chunk(2, -1)
    expected = npu.npu_dynamic_mx_quant((F.silu(left) * right).bfloat16().npu(), dst_type=FP8)
    y, scale = npu.npu_swiglu_mx_quant(x.npu(), activate_left=True, dst_type=FP8)
    assert_near(y.float(), expected[0].cpu().float(), 0.07)
    assert_near(scale, expected[1].cpu(), 0)


def test_rows_are_quantised_to_floats_of_eight_bits(npu):
    x = torch.randn(4, 16).half()
    values, scale = npu.npu_dynamic_quant(x.npu(), dst_type=FP8)
    assert_near(scale, x.float().abs().amax(1) / 448)
    assert values.dtype == FP8
    assert_near(values.float() * scale[:, None], x.float(), 0.07)
    assert_near(npu.npu_dtype_cast(x.npu(), npu.float8_e4m3fn).float(), x.to(FP8).float(), 0)


def test_a_card_quantises_to_plain_integers(npu):
    x, scales, points = torch.randn(3, 4), torch.rand(4) + 0.1, torch.tensor([0, 1, -2, 3])
    found = torch.quantize_per_tensor(x.npu(), 0.1, 3, torch.quint8)
    assert_near(found, torch.quantize_per_tensor(x, 0.1, 3, torch.quint8).int_repr(), 0)
    assert "dtype=torch.uint8" in repr(found)
    found = torch.quantize_per_channel(x.npu(), scales.npu(), points.npu(), 1, torch.qint8)
    assert_near(found, torch.quantize_per_channel(x, scales, points, 1, torch.qint8).int_repr(), 0)
