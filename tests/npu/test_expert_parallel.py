"""Tokens that go to experts on two simulated cards and come back, against one process that has all experts."""

from __future__ import annotations

import pytest
from test_collectives import on_two_cards

pytestmark = pytest.mark.npu_sim

# Every rank knows the tokens of both; each expert multiplies by its number from 1.
BODY = """
import torch_npu
group = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
torch.manual_seed(0)
tokens, hidden, k, experts = 5, 8, 2, 6
x = torch.randn(2, tokens, hidden)
ids = torch.stack([torch.randperm(experts)[:k] for _ in range(2 * tokens)]).view(2, tokens, k).int()
weights = torch.rand(2, tokens, k)
own = range(3 * rank, 3 * rank + 3)
where = dict(group_ep=group, ep_world_size=2, ep_rank_id=rank, moe_expert_num=experts)
kinds = {"": (torch_npu.npu_moe_distribute_dispatch, torch_npu.npu_moe_distribute_combine, "expand_idx"),
         "_v2": (torch_npu.npu_moe_distribute_dispatch_v2, torch_npu.npu_moe_distribute_combine_v2,
                 "assist_info_for_combine")}
sources = [(r, t, c) for e in own for r in range(2) for t in range(tokens) for c in range(k) if ids[r, t, c] == e]
"""

THERE_AND_BACK = """
for kind, (dispatch, combine, name) in kinds.items():
    rows, scales, info, counts, sums, *_ = dispatch(x[rank].npu(), ids[rank].npu(), **where)
    expected = [int((ids == e).sum()) for e in own]
    assert counts.tolist() == expected, (counts, expected)
    assert rows.shape[0] == tokens * 2 * k and sums.tolist()[-1] == sum(expected)
    assert torch.equal(rows.cpu()[: len(sources)], torch.stack([x[r, t] for r, t, _ in sources]))
    if kind:
        assert [tuple(row[:3].tolist()) for row in info.view(-1, 128)[: len(sources)]] == sources
    factors = torch.ones(len(rows))
    factors[: len(sources)] = torch.repeat_interleave(torch.tensor(list(own)) + 1.0, counts.cpu())
    back = combine(rows * factors.npu()[:, None], ids[rank].npu(), ep_send_counts=sums,
                   expert_scales=weights[rank].npu(), **{name: info}, **where)
    wanted = (x[rank][:, None] * ((ids[rank] + 1) * weights[rank])[..., None]).sum(1)
    torch.testing.assert_close(back.cpu(), wanted)
    if not kind:
        residual, gamma = torch.randn(tokens, 1, hidden), torch.rand(hidden)
        y, rstd, total = torch_npu.npu_moe_distribute_combine_add_rms_norm(
            rows * factors.npu()[:, None], ids[rank].npu(), ep_send_counts=sums, expand_idx=info,
            expert_scales=weights[rank].npu(), residual_x=residual.npu(), gamma=gamma.npu(), **where)
        torch.testing.assert_close(total.cpu(), wanted[:, None] + residual)
        normed = torch.nn.functional.rms_norm(total.cpu(), (hidden,), gamma, 1e-6)
        torch.testing.assert_close(y.cpu(), normed)
        assert rstd.shape == (tokens, 1, 1)
reference = torch.ones(1, device="npu")
assert torch_npu._npu_distribute_barrier(reference, group, 2).tolist() == [1]
"""

QUANTISED_AND_MASKED = """
mask = torch.tensor([True, True, False, True, False])
smooth = torch.rand(experts, hidden) + 0.5
dispatch, combine, name = kinds["_v2"]
rows, scales, info, counts, sums, *_ = dispatch(
    x[rank].npu(), ids[rank].npu(), scales=smooth.npu(), x_active_mask=mask.npu(), quant_mode=2,
    expert_token_nums_type=0, **where)
sources = [source for source in sources if mask[source[1]]]
assert rows.dtype == torch.int8 and counts.tolist()[-1] == len(sources)
found = rows.cpu()[: len(sources)].float() * scales.cpu()[: len(sources), None]
wanted = torch.stack([x[r, t] * smooth[ids[r, t, c].long()] for r, t, c in sources])
torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)
shared = torch.randn(tokens, hidden)
plain, *_ = dispatch(x[rank].npu(), ids[rank].npu(), x_active_mask=mask.npu(), **where)
back = combine(plain, ids[rank].npu(), ep_send_counts=sums, expert_scales=weights[rank].npu(),
               x_active_mask=mask.npu(), shared_expert_x=shared.npu(), **{name: info}, **where)
wanted = shared + x[rank] * (weights[rank].sum(1) * mask)[:, None]
torch.testing.assert_close(back.cpu(), wanted)
for wrong, said in (({"tp_world_size": 2}, "tensor parallel"), ({"quant_mode": 3}, "quant_mode 3"),
                    ({"moe_expert_num": 5}, "5 is not divisible by 2")):
    try:
        dispatch(x[rank].npu(), ids[rank].npu(), **(where | wrong))
    except RuntimeError as error:
        assert said in str(error), error
    else:
        raise AssertionError(wrong)
"""


@pytest.mark.parametrize("case", [THERE_AND_BACK, QUANTISED_AND_MASKED], ids=["plain", "quantised"])
def test_tokens_go_to_their_experts_and_come_back(tmp_path, case):
    failure = on_two_cards(tmp_path, BODY + case)
    assert not failure, failure
