"""Scales that blocks of rows and columns share on simulated NPUs, by their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim

FP8 = torch.float8_e4m3fn


def test_blocks_of_rows_and_columns_share_a_float(npu):
    x = torch.randn(4, 300).half()
    values, scale = npu.npu_dynamic_block_quant(x.npu())  # to int8, a row by 128 columns
    padded = F.pad(x.float(), (0, 84)).view(4, 3, 128)
    expected = padded.abs().amax(-1) / 127
    assert_near(scale, expected)
    assert_near(values, (padded / expected[..., None]).round().to(torch.int8).view(4, 384)[:, :300], 0)
    x = torch.randn(2, 130, 256).bfloat16()
    values, scale = npu.npu_dynamic_block_quant(x.npu(), dst_type=FP8, row_block_size=128, col_block_size=128)
    assert values.dtype == FP8 and scale.shape == (2, 2, 2)
    assert_near(scale[1, 1, 0], x[1, 128:, :128].abs().max().float() / 448)
    wide = scale.repeat_interleave(128, 1)[:, :130].repeat_interleave(128, 2)
    assert_near(values.float() * wide, x.float(), 0.13)


def test_a_block_of_zeros_has_zeros_and_no_scale(npu):
    zeros = torch.zeros(1, 3).half().npu()
    values, scale = npu.npu_dynamic_block_quant(zeros)
    assert (values.tolist(), scale.tolist()) == ([[0, 0, 0]], [[0.0]])
    assert npu.npu_dynamic_block_quant(zeros, min_scale=0.5)[1].tolist() == [[0.5]]
    with pytest.raises(RuntimeError, match="no round_mode 'hybrid'"):
        npu.npu_dynamic_block_quant(zeros, round_mode="hybrid")


def test_no_block_crosses_a_groups_end(npu):
    x, ends = torch.randn(5, 128).bfloat16(), torch.tensor([3, 5], dtype=torch.int32)
    values, scale = npu.npu_grouped_dynamic_block_quant(x.npu(), ends.npu(), dst_type=FP8, row_block_size=2)
    assert scale.shape == (
        5 // 2 + 2,
        1,
    )  # of three rows two blocks, of two rows one, which begins at 3 // 2 + 1
    tops = [x[rows].abs().max().float() / 448 for rows in (slice(0, 2), slice(2, 3), slice(3, 5))]
    assert_near(scale[:, 0], torch.stack([*tops, torch.tensor(0.0)]))
    rows = scale.cpu()[[0, 0, 1, 2, 2]]
    assert_near(values.float(), (x.float() / rows).to(FP8).float(), 0)


def test_squares_share_a_power_of_two(npu):
    x = torch.randn(64, 96).bfloat16()
    x[:32, 32:64] *= 100
    values, rows, columns = npu.npu_dynamic_block_mx_quant(x.npu(), dst_type=FP8)
    assert (rows.shape, columns.shape) == ((64, 2, 2), (1, 96, 2))
    for scale, axis in ((rows, -1), (columns, 0)):
        back = npu.npu_anti_mx_quant(values, scale, axis=axis, dst_type=torch.float32, src_type=FP8)
        assert_near(back, x.float(), 0.13)
    assert rows[0, 0, 1] > rows[32, 0, 1] and rows[0, 1, 1] == 0  # there is no fourth block
    zeros = torch.zeros(1, 2, 2).bfloat16().npu()
    four = npu.npu_dynamic_block_mx_quant(
        zeros, round_mode="floor", dst_type=npu.float4_e2m1fn_x2, scale_alg=2, dst_type_max=6.0
    )
    assert [tuple(part.shape) for part in four] == [(1, 2, 1), (1, 2, 1, 2), (1, 1, 2, 2)]
    assert not any(part.any() for part in four)


def test_two_levels_of_scales_and_the_product_of_such_matrices(npu):
    values, outer, inner = npu.npu_dynamic_dual_level_mx_quant(torch.full((1, 512), 8.0).bfloat16().npu())
    assert outer.shape == (1, 1) and outer.item() == pytest.approx(8 / 6)
    assert (values == 0x77).all() and values.shape == (1, 256)  # 6 and 6, the largest there is
    assert (inner == 127).all() and inner.shape == (1, 8, 2)
    a, b, bias = torch.randn(5, 1024).bfloat16(), torch.randn(6, 1024).bfloat16(), torch.randn(6)
    (qa, a0, a1), (qb, b0, b1) = (npu.npu_dynamic_dual_level_mx_quant(x.npu()) for x in (a, b))

    def floats(values: torch.Tensor, outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        plain = npu.npu_anti_mx_quant(values, inner, dst_type=torch.float32, src_type=npu.float4_e2m1fn_x2)
        return (plain * outer.repeat_interleave(512, -1)).cpu()

    assert_near(floats(qa, a0, a1).npu(), a.float(), 0.6)
    found = npu.npu_dual_level_quant_matmul(qa, qb, a0, b0.t().contiguous(), a1, b1, bias=bias.npu())
    assert_near(found, (floats(qa, a0, a1) @ floats(qb, b0, b1).t() + bias).bfloat16(), 0.02)


def test_a_gate_is_microscaled_along_both_axes(npu):
    x, ends = torch.randn(100, 128).bfloat16(), torch.tensor([70, 100], dtype=torch.int32)
    left, right = x.float().chunk(2, -1)
    y = (F.silu(left) * right).bfloat16().npu()
    found = npu.npu_swiglu_mx_quant_with_dual_axis(x.npu(), dst_type=FP8)
    for part, expected in zip(
        found, npu.npu_dynamic_mx_quant_with_dual_axis(y, dst_type=FP8, scale_alg=1), strict=True
    ):
        assert_near(part.float(), expected.cpu().float(), 0.07)
    found = npu.npu_swiglu_mx_quant_with_dual_axis(x.npu(), group_index=ends.npu(), dst_type=FP8)
    expected = npu.npu_grouped_dynamic_mx_quant(y, ends.npu(), dst_type=FP8, scale_alg=1)
    assert_near(found[2].float(), expected[0].cpu().float(), 0.07)
    assert_near(found[3], expected[1].cpu(), 0)
