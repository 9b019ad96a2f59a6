"""Quantised products of experts on simulated NPUs, against the same sums in plain floats."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim

EXPERTS, TOKENS, CHOICES, INNER, OUTER = 4, 6, 2, 32, 16
ROWS = TOKENS * CHOICES


def integers(*shape: int, limit: int = 10) -> torch.Tensor:
    return torch.randint(-limit, limit, shape, dtype=torch.int8)


def setting() -> dict[str, torch.Tensor]:
    return {
        "group_list": torch.tensor([3, 0, 5, 4]),
        "pertoken_scale": torch.rand(ROWS),
        "logit": torch.rand(ROWS),
        "row_index": torch.arange(ROWS) % TOKENS,
        "shared_input": torch.randn(2, OUTER).bfloat16(),
    }


def summed(rows: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    weighed = rows * (given["pertoken_scale"] * given["logit"])[:, None]
    out = torch.zeros(TOKENS, OUTER).index_add(0, given["row_index"], weighed)
    out[3:5] += 0.5 * given["shared_input"].float()
    return out


def routed(npu, x, weight, given, **more):
    return npu.npu_grouped_matmul_finalize_routing(
        x.npu(), weight, shared_input_weight=0.5, shared_input_offset=3, output_bs=TOKENS,
        **{name: value.npu() for name, value in (given | more).items()},
    )  # fmt: skip


def test_rows_of_experts_are_summed_into_their_tokens(npu):
    x, weight, scale, given = (
        integers(ROWS, INNER),
        integers(EXPERTS, INNER, OUTER),
        torch.rand(EXPERTS, OUTER),
        setting(),
    )
    expert = torch.repeat_interleave(torch.arange(EXPERTS), given["group_list"])
    rows = torch.einsum("rk,rkn->rn", x.float(), weight.float()[expert]) * scale[expert]
    found = routed(npu, x, npu.npu_format_cast(weight.npu(), 29), given, scale=scale)
    assert_near(found, summed(rows, given))
    ends = given | {"group_list": given["group_list"].cumsum(0)}
    found = npu.npu_grouped_matmul_finalize_routing(
        x.npu(), weight.npu(), scale=scale.npu(), group_list_type=0, output_bs=TOKENS,
        **{name: ends[name].npu() for name in ("group_list", "pertoken_scale", "logit", "row_index")},
    )  # fmt: skip
    given["shared_input"] *= 0
    assert_near(found, summed(rows, given))


def test_weights_of_four_bits_have_scales_of_groups(npu):
    x, weight, given = integers(ROWS, INNER), integers(EXPERTS, INNER, OUTER, limit=5), setting()
    packed = npu.npu_quantize(weight.float().npu(), torch.ones(1).npu(), None, torch.quint4x2, -1, False)
    scale, bias = torch.rand(EXPERTS, 2, OUTER), torch.randn(EXPERTS, OUTER)
    offset = torch.randn(EXPERTS, 2, OUTER)
    bits = scale.view(torch.int32).long()
    expert = torch.repeat_interleave(torch.arange(EXPERTS), given["group_list"])
    halves = (x.float().view(ROWS, 2, -1), weight.float().view(EXPERTS, 2, -1, OUTER)[expert])
    rows = (torch.einsum("rgk,rgkn->rgn", halves[0] - 8, halves[1]) * scale[expert]).sum(1)
    rows = rows + (halves[0].sum(-1, keepdim=True) * offset[expert]).sum(1) + bias[expert]
    assert_near(routed(npu, x, packed, given, scale=bits, bias=bias, offset=offset), summed(rows, given))


def test_gated_products_are_quantised_by_row(npu):
    x, weight = integers(5, INNER), integers(2, INNER, OUTER)
    scale, rows, ends = torch.rand(2, OUTER), torch.rand(5), torch.tensor([2, 5])
    plain = torch.cat(
        [x[:2].float() @ weight[0].float() * scale[0], x[2:].float() @ weight[1].float() * scale[1]]
    )
    left, right = (plain * rows[:, None]).chunk(2, -1)
    y = F.silu(left) * right
    arguments = ([weight.npu()], [scale.npu()], rows.npu())
    values, found = npu.npu_grouped_matmul_swiglu_quant_v2(x.npu(), *arguments, ends.npu())
    assert_near(found, y.abs().amax(1) / 127)
    assert_near(values.float(), (y / (y.abs().amax(1, keepdim=True) / 127)).round(), 1)
    split = ([w.npu() for w in weight], [s.npu() for s in scale], rows.npu())
    again = npu.npu_grouped_matmul_swiglu_quant_v2(
        x.npu(), *split, torch.tensor([2, 3]).npu(), group_list_type=1
    )
    assert_near(again[0], values.cpu(), 0)


def test_a_batch_of_products_is_summed(npu):
    x, weight = integers(3, 4, INNER), integers(3, INNER, OUTER)
    rows, columns = torch.rand(3, 4), torch.rand(OUTER).bfloat16()
    found = npu.npu_quant_matmul_reduce_sum(
        x.npu(), weight.npu(), x1_scale=rows.npu(), x2_scale=columns.npu()
    )
    expected = (x.float() @ weight.float() * columns.float() * rows[..., None]).sum(0)
    assert_near(found, expected.bfloat16(), 0.01)
