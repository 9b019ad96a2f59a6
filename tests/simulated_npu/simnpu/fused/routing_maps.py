"""Mixtures of experts by a map [T, E] of which token T goes to which expert E. Copies of tokens lie by expert.

With drop_and_pad every expert gets `capacity` copies: first its own tokens, then others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, check, gradients, kernel
from simnpu.fused.quantisation import dynamic, integers

SIGMOID = 1  # a value of norm_type
CUMULATIVE, COUNT = 1, 2  # values of expert_tokens_num_mode
STATIC, DYNAMIC = 0, 1  # values of quant_mode


def padded_tokens(routing_map: Tensor, capacity: int) -> Tensor:
    """The token of each copy where all experts get equally many."""
    order = routing_map.to(torch.int8).t().argsort(dim=-1, descending=True, stable=True)
    return order[:, :capacity].flatten()


def tokens_by_expert(routing_map: Tensor) -> Tensor:
    """The token of each copy."""
    return routing_map.bool().t().nonzero()[:, 1]


@kernel("npu_moe_token_permute_with_routing_map")
def permute_with_routing_map(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out_tokens: int | None, drop_and_pad: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Copies and their probabilities; then each copy's token if padded, else where each token's copies went."""
    if drop_and_pad:
        experts = routing_map.shape[1]
        check(bool(num_out_tokens), "drop_and_pad needs num_out_tokens")
        sources = padded_tokens(routing_map, num_out_tokens // experts)
        owners = torch.arange(experts).repeat_interleave(num_out_tokens // experts)
        chosen = None if probs is None else probs[sources, owners]
        return tokens[sources], chosen, sources.int()
    sources = tokens_by_expert(routing_map)
    chosen = None if probs is None else probs.t()[routing_map.bool().t()]
    return tokens[sources], chosen, sources.argsort(stable=True).int()


@kernel("npu_moe_token_permute_with_routing_map_grad")
def permute_with_routing_map_grad(
    permuted_token_out_grad: Tensor, probs_grad: Tensor | None, sorted_indices: Tensor, routing_map: Tensor,
    experts_num: int, tokens_num: int, drop_and_pad: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    sources = sorted_indices.long() if drop_and_pad else tokens_by_expert(routing_map)
    if drop_and_pad:
        owners = torch.arange(experts_num).repeat_interleave(sources.numel() // experts_num)
    else:
        owners = routing_map.bool().t().nonzero()[:, 0]
    upstream = permuted_token_out_grad.float()
    tokens = torch.zeros(tokens_num, upstream.shape[1]).index_add_(0, sources, upstream)
    probs = None
    if probs_grad is not None:
        probs = torch.zeros(tokens_num, experts_num, dtype=probs_grad.dtype)
        probs[sources, owners] = probs_grad
    return tokens.to(permuted_token_out_grad.dtype), probs


def places(
    sorted_indices: Tensor, routing_map: Tensor | None, tokens: int, padded: bool
) -> tuple[Tensor, Tensor]:
    """Copies in the order of their tokens, and these tokens."""
    if padded:
        sources, order = sorted_indices.long().sort(stable=True)
        return order, sources
    if routing_map is not None:
        return sorted_indices.long(), routing_map.bool().nonzero()[:, 0]
    return sorted_indices.long(), torch.arange(tokens).repeat_interleave(sorted_indices.numel() // tokens)


def owners_of(order: Tensor, routing_map: Tensor | None, probs: Tensor, padded: bool) -> Tensor:
    """The expert of each copy, in the order of tokens."""
    if padded:
        return order // (order.numel() // probs.shape[1])
    check(routing_map is not None, "probs need routing_map")
    return routing_map.bool().nonzero()[:, 1]


@kernel("_npu_moe_token_unpermute_with_routing_map")
def unpermute_with_routing_map(
    permuted_tokens: Tensor, sorted_indices: Tensor, restore_shape: list[int], probs: Tensor | None,
    routing_map: Tensor | None, drop_and_pad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Sums of each token's copies; what backward needs: copies by token, tokens, and the probability of each copy."""
    order, sources = places(sorted_indices, routing_map, restore_shape[0], drop_and_pad)
    rows, chosen = permuted_tokens[order].float(), None
    if probs is not None:
        chosen = probs[sources, owners_of(order, routing_map, probs, drop_and_pad)]
        rows = rows * chosen.float()[:, None]
    out = torch.zeros(restore_shape).index_add_(0, sources, rows).to(permuted_tokens.dtype)
    if chosen is not None and drop_and_pad:
        chosen = torch.empty_like(chosen).index_copy_(0, order, chosen)  # as the copies lie
    return out, order.int(), sources.int(), chosen


@kernel("npu_moe_token_unpermute_with_routing_map_grad")
def unpermute_with_routing_map_grad(
    unpermuted_tokens_grad: Tensor, out_index: Tensor, permuted_token_id: Tensor, routing_map: Tensor | None,
    permuted_tokens: Tensor | None, probs: Tensor | None, drop_and_pad: bool,
    restore_shape: list[int],
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    check(
        list(unpermuted_tokens_grad.shape) == list(restore_shape),
        f"restore_shape {restore_shape} is not the gradient's",
    )
    if drop_and_pad:
        order, sources = out_index.long(), permuted_token_id.long()
    else:  # torch_npu gives the sorted indices as both
        order, sources = places(out_index, routing_map, restore_shape[0], False)
    upstream = unpermuted_tokens_grad.float()[sources]
    grad, probs_grad = torch.zeros(order.numel(), upstream.shape[1]), None
    if probs is not None:
        owners = owners_of(order, routing_map, probs, drop_and_pad)
        probs_grad = torch.zeros_like(probs)
        probs_grad[sources, owners] = (upstream * permuted_tokens[order].float()).sum(1).to(probs.dtype)
        upstream = upstream * probs[sources, owners].float()[:, None]
    grad[order] = upstream
    return grad.to(unpermuted_tokens_grad.dtype), probs_grad


@kernel("npu_moe_gating_top_k_backward")
def gating_top_k_backward(
    x_norm: Tensor,
    grad_y: Tensor,
    expertIdx: Tensor,
    norm_type: int,
    routed_scaling_factor: float,
    eps: float,
) -> Tensor:
    """`x_norm` are the sigmoids; the weights are those of the chosen experts by their sum."""
    if norm_type != SIGMOID:
        raise NotSimulated(f"npu_moe_gating_top_k_backward: the simulator has no norm_type {norm_type}")
    index = expertIdx.long()

    def weights(sigmoids: Tensor) -> Tensor:
        chosen = sigmoids.gather(-1, index)
        return routed_scaling_factor * chosen / (chosen.sum(-1, keepdim=True) + eps)

    (grad,) = gradients(weights, [x_norm.float()], [grad_y.float()])
    return (grad * x_norm * (1 - x_norm)).to(grad_y.dtype)


@kernel("npu_moe_init_routing_quant")
def init_routing_quant(
    x: Tensor, expert_idx: Tensor, scale: Tensor | None, offset: Tensor | None, active_num: int, expert_num: int,
    drop_pad_mode: int, expert_tokens_num_mode: int, quant_mode: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Quantised rows by expert, where each copy went, tokens of each expert, nothing, and scales of the rows."""
    if drop_pad_mode != 0:
        raise NotSimulated(f"npu_moe_init_routing_quant: the simulator has no drop_pad_mode {drop_pad_mode}")
    experts, order = expert_idx.flatten().long().sort(stable=True)
    if active_num > 0:
        order, experts = order[:active_num], experts[:active_num]
    rows = x[order // expert_idx.shape[-1]].float()
    if quant_mode == STATIC:
        check(scale is not None, "quant_mode 0 needs scale")
        rows = rows * scale.float()
        values, scales = integers(rows if offset is None else rows + offset.float(), 1), torch.empty(0)
    else:
        check(quant_mode == DYNAMIC, f"quant_mode {quant_mode} is not one of 0, 1")
        smooth = scale if scale is None or scale.shape[0] == 1 else scale[experts]
        values, found = dynamic(rows, None, smooth, (-1,))
        scales = found.squeeze(-1)
    places = torch.full((expert_idx.numel(),), -1, dtype=torch.int32)
    places[order] = torch.arange(order.numel(), dtype=torch.int32)
    counts = torch.bincount(expert_idx.flatten().long(), minlength=expert_num).int()
    tokens = {CUMULATIVE: counts.cumsum(0).int(), COUNT: counts}.get(expert_tokens_num_mode, counts[:0])
    return values, places, tokens, torch.empty(0, dtype=torch.int32), scales


@kernel("npu_moe_update_expert")
def moe_update_expert(
    expert_ids: Tensor, eplb_table: Tensor, expert_scales: Tensor | None, pruning_threshold: Tensor | None,
    active_mask: Tensor | None, local_rank_id: int, world_size: int, balance_mode: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Where the copy of each expert is that this rank (mode 0) or token (mode 1) takes, and which of them count.

    A row of the table has the number of copies, then their places. Scales below a share of the token's sum are cut.
    """
    check(balance_mode in (0, 1), f"balance_mode is 0 or 1, got {balance_mode}")
    rows = eplb_table.long()[expert_ids.long()]
    copies = rows[..., 0]
    if balance_mode == 0:
        copy = local_rank_id // -(-world_size // copies)
    else:
        copy = torch.arange(expert_ids.shape[0])[:, None] % copies
    places = rows.gather(-1, copy[..., None] + 1).squeeze(-1)
    kept = torch.ones(expert_ids.shape, dtype=torch.bool)
    if expert_scales is not None:
        kept = expert_scales >= pruning_threshold * expert_scales.sum(-1, keepdim=True)
    return places.to(expert_ids.dtype), kept if active_mask is None else kept & active_mask[:, None]
