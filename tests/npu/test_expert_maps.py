"""Mixtures of experts by a map of tokens and experts, on simulated NPUs against the CPU."""

from __future__ import annotations

import pytest
import torch
from nearness import assert_near

pytestmark = pytest.mark.npu_sim
MAP = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]])


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone().npu().requires_grad_()


def copies(padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and experts of the copies, by expert."""
    if padded:
        tokens = torch.cat([column.argsort(descending=True, stable=True)[:2] for column in MAP.t()])
        return tokens, torch.arange(3).repeat_interleave(2)
    experts, tokens = MAP.t().nonzero().unbind(1)
    return tokens, experts


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("has_probs", [False, True])
def test_tokens_go_to_the_experts_of_a_map_and_back(npu, padded, has_probs):
    tokens, experts = copies(padded)
    x, probs, upstream = torch.randn(4, 5), torch.rand(4, 3), torch.randn(tokens.numel(), 5)
    plain_x, plain_probs = x.clone().requires_grad_(), probs.clone().requires_grad_()
    card_x, card_probs = leaf(x), leaf(probs)
    given = {"probs": card_probs} if has_probs else {}
    rows, chosen, index = npu.npu_moe_token_permute_with_routing_map(
        card_x, MAP.bool().npu(), num_out_tokens=tokens.numel(), drop_and_pad=padded, **given
    )
    assert_near(rows.detach(), x[tokens])
    assert index.dtype == torch.int32
    assert index.tolist() == (tokens if padded else tokens.argsort(stable=True)).tolist()
    loss, plain = (rows * upstream.npu()).sum(), (plain_x[tokens] * upstream).sum()
    if has_probs:
        assert_near(chosen.detach(), probs[tokens, experts])
        loss, plain = loss + (chosen * 2).sum(), plain + (plain_probs[tokens, experts] * 2).sum()
    loss.backward()
    plain.backward()
    assert_near(card_x.grad, plain_x.grad)
    if has_probs:
        assert_near(card_probs.grad, plain_probs.grad)

    y = upstream
    plain_y, card_y = y.clone().requires_grad_(), leaf(y)
    plain_probs.grad = card_probs.grad = None
    weights = plain_probs[tokens, experts][:, None] if has_probs else 1.0
    expected = torch.zeros(4, 5).index_add(0, tokens, plain_y * weights)
    found = npu.npu_moe_token_unpermute_with_routing_map(
        card_y, index, [4, 5], routing_map=MAP.bool().npu(), drop_and_pad=padded, **given
    )
    assert_near(found.detach(), expected.detach())
    expected.square().sum().backward()
    found.square().sum().backward()
    assert_near(card_y.grad, plain_y.grad)
    if has_probs:
        assert_near(card_probs.grad, plain_probs.grad)


def test_weights_of_the_best_experts_train(npu):
    x = torch.randn(6, 8)

    def weights(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        chosen = logits.sigmoid().gather(-1, index)
        return 2.5 * chosen / (chosen.sum(-1, keepdim=True) + 1e-20)

    card, plain = leaf(x), x.clone().requires_grad_()
    found, experts, _ = npu.npu_moe_gating_top_k(
        card, 3, norm_type=1, routed_scaling_factor=2.5, out_flag=True
    )
    expected = weights(plain, experts.cpu().long())
    assert_near(found.detach(), expected.detach())
    found.square().sum().backward()
    expected.square().sum().backward()
    assert_near(card.grad, plain.grad)
    with pytest.raises(RuntimeError, match="the simulator has no norm_type 0"):
        npu.npu_moe_gating_top_k_backward(card.detach(), found.detach(), experts)


@pytest.mark.parametrize("quant_mode", [0, 1])
def test_rows_of_experts_are_quantised_on_their_way(npu, quant_mode):
    x, experts, scale = (
        torch.randn(4, 8),
        torch.tensor([[2, 0], [1, 2], [0, 2], [1, 0]]),
        torch.tensor([20.0]),
    )
    values, places, tokens, _, scales = npu.npu_moe_init_routing_quant(
        x.npu(), experts.int().npu(), scale=None if quant_mode else scale.npu(), active_num=0, expert_num=4,
        expert_tokens_num_mode=2, quant_mode=quant_mode,
    )  # fmt: skip
    order = experts.flatten().argsort(stable=True)
    rows = x[order // 2]
    assert places.tolist() == order.argsort().tolist() and tokens.tolist() == [3, 2, 3, 0]
    if quant_mode:
        assert_near(scales, rows.abs().amax(1) / 127)
        rows = rows / (rows.abs().amax(1, keepdim=True) / 127)
    else:
        rows = rows * 20
    assert_near(values.float(), rows.round().clamp(-128, 127), 1.01)
    with pytest.raises(RuntimeError, match="the simulator has no drop_pad_mode 1"):
        npu.npu_moe_init_routing_quant(x.npu(), experts.int().npu(), drop_pad_mode=1)


def test_experts_with_copies_are_spread_and_small_ones_cut(npu):
    table = torch.tensor([[1, 5, 0], [2, 3, 7]], dtype=torch.int32)  # how many copies, and where they are
    ids = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    where, kept = npu.npu_moe_update_expert(ids.npu(), table.npu(), local_rank_id=3, world_size=4)
    assert (
        where.tolist() == [[5, 7], [7, 5]] and kept.all()
    )  # of four ranks the upper two take the second copy
    scales, threshold = torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[0.2, 0.2]])
    where, kept = npu.npu_moe_update_expert(
        ids.npu(), table.npu(), expert_scales=scales.npu(), pruning_threshold=threshold.npu(),
        active_mask=torch.tensor([True, False]).npu(), balance_mode=1,
    )  # fmt: skip
    assert where.tolist() == [[5, 3], [7, 5]] and kept.tolist() == [[True, False], [False, False]]
