"""Mixtures of experts: which experts get a token, its way there and back. Tokens go by expert, stably."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, gradients, kernel
from simnpu.fused.quantisation import dynamic

SOFTMAX, SIGMOID = 0, 1  # values of norm_type
CUMULATIVE, COUNT, KEY_VALUE = 0, 1, 2  # values of expert_tokens_num_type


@kernel("npu_moe_gating_top_k_softmax")
def gating_top_k_softmax(x: Tensor, finished: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, experts, and where copies stand: by k first, then by token. A finished token gets no expert."""
    values, experts = x.float().softmax(-1).topk(k, -1)
    if finished is not None:
        experts = experts.masked_fill(finished.bool()[..., None], x.shape[-1])
    rows = torch.arange(values.numel(), dtype=torch.int32).view(k, -1).t().reshape(values.shape).contiguous()
    return values.to(x.dtype), experts.int(), rows


@kernel("npu_moe_gating_top_k_softmax_v2")
def gating_top_k_softmax_v2(
    x: Tensor, k: int, finished: Tensor | None, renorm: int | None, output_softmax: bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    weights = x.float() if renorm else x.float().softmax(-1)
    values, experts = weights.topk(k, -1)
    if finished is not None:
        experts = experts.masked_fill(finished.bool()[..., None], x.shape[-1])
    whole = weights if output_softmax and not renorm else torch.empty(0)
    return (values.softmax(-1) if renorm else values).to(x.dtype), experts.int(), whole


@kernel("npu_moe_gating_top_k")
def gating_top_k(
    x: Tensor, k: int, bias: Tensor | None, k_group: int, group_count: int, group_select_mode: int, renorm: int,
    norm_type: int, out_flag: bool, routed_scaling_factor: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The best experts of the best groups; the bias chooses, it does not weigh."""
    if norm_type not in (SOFTMAX, SIGMOID):
        raise NotSimulated(f"npu_moe_gating_top_k: the simulator has no norm_type {norm_type}")
    weights = x.float().softmax(-1) if norm_type == SOFTMAX else x.float().sigmoid()
    scores = weights if bias is None else weights + bias.float()
    if group_count > 1:
        groups = scores.unflatten(-1, (group_count, -1))
        best = groups.topk(2, -1).values.sum(-1) if group_select_mode else groups.amax(-1)
        chosen = torch.zeros_like(best).scatter(-1, best.topk(k_group, -1).indices, 1).bool()
        scores = groups.masked_fill(~chosen[..., None], float("-inf")).flatten(-2)
    experts = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    values = weights.gather(-1, experts)
    if norm_type == SIGMOID or renorm:
        values = values / (values.sum(-1, keepdim=True) + eps)
    return (
        (values * routed_scaling_factor).to(x.dtype),
        experts.int(),
        weights if out_flag else torch.empty(0),
    )


@kernel("npu_moe_init_routing")
def init_routing(
    x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows by expert, where each row of `row_idx` went, and the sorted experts."""
    experts, order = expert_idx.flatten().sort(stable=True)
    sources = row_idx.flatten()[order].long()
    places = torch.empty(sources.numel(), dtype=torch.int32)
    places[sources] = torch.arange(sources.numel(), dtype=torch.int32)
    count = min(active_num, x.shape[0]) * expert_idx.shape[-1]
    return x[sources[:count] % x.shape[0]], places, experts.int()


@kernel("npu_moe_init_routing_v2")
def init_routing_v2(
    x: Tensor, expert_idx: Tensor, scale: Tensor | None, active_num: int, expert_num: int,
    expert_tokens_num_type: int, expert_tokens_num_flag: bool, quant_mode: int, active_expert_range: list[int],
    row_idx_type: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The rows of the experts in the range come first; the others have the place -1."""
    experts, k = expert_idx.flatten().long(), expert_idx.shape[-1]
    first, last = active_expert_range or (0, expert_num if expert_num > 0 else int(experts.max()) + 1)
    active = (experts >= first) & (experts < last)
    order = torch.where(active, experts, last).sort(stable=True).indices
    total = int(active.sum())
    places = torch.full((experts.numel(),), -1, dtype=torch.int32)
    places[order[:total]] = torch.arange(total, dtype=torch.int32)
    scatter = torch.cat((order[:total].int(), torch.full((experts.numel() - total,), -1, dtype=torch.int32)))
    count = min(active_num, experts.numel()) if active_num > 0 else experts.numel()
    sources = order[:count] // k
    rows, scales = x[sources], torch.empty(0)
    if quant_mode == 1:
        rows, found = dynamic(rows, None, scale, (-1,))
        scales = found.squeeze(-1)
    elif quant_mode != -1:
        raise NotSimulated(f"npu_moe_init_routing_v2: the simulator has no quant_mode {quant_mode}")
    elif scale is not None:
        scales = scale[sources]
    counts = torch.bincount(experts[active] - first, minlength=last - first)
    tokens = torch.empty(0, dtype=torch.int64)
    if expert_tokens_num_flag and expert_tokens_num_type == KEY_VALUE:
        used = counts.nonzero().flatten()
        tokens = torch.stack((used + first, counts[used]), 1)
    elif expert_tokens_num_flag:
        tokens = counts.cumsum(0) if expert_tokens_num_type == CUMULATIVE else counts
    return rows, scatter if row_idx_type == 1 else places, tokens, scales


@kernel("npu_moe_compute_expert_tokens")
def compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> Tensor:
    """Where each expert's rows end."""
    counts = torch.bincount(sorted_expert_for_source_row.long(), minlength=num_expert)[:num_expert]
    return counts.cumsum(0).to(sorted_expert_for_source_row.dtype)


@kernel("npu_moe_finalize_routing")
def finalize_routing(
    expanded_permuted_rows: Tensor, skip1: Tensor | None, skip2: Tensor | None, bias: Tensor | None,
    scales: Tensor | None, expanded_src_to_dst_row: Tensor, export_for_source_row: Tensor | None,
    drop_pad_mode: int | None,
) -> Tensor:  # fmt: skip
    """Sums a token's rows. Places go by k first in modes 0 and 1; in modes 1 and 3 a dropped row has the place -1."""
    k = 1 if scales is None else scales.shape[1]
    places = expanded_src_to_dst_row.flatten().long()
    places = places.view(k, -1).t() if drop_pad_mode in (0, 1, None) else places.view(-1, k)
    flat = expanded_permuted_rows.flatten(0, -2)
    rows = flat[places.clamp_min(0)].float() * (places >= 0)[..., None]
    if bias is not None:
        rows = rows + bias.float()[export_for_source_row.long()]
    if scales is not None:
        rows = rows * scales.float()[..., None]
    out = rows.sum(1)
    for skip in (skip1, skip2):
        out = out if skip is None else out + skip.float()
    return out.to(expanded_permuted_rows.dtype)


@kernel("npu_moe_re_routing")
def re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    per_token_scales: Tensor | None,
    expert_token_num_type: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that lie by rank, then by expert, come to lie by expert, then by rank."""
    counts = expert_token_num_per_rank.long()
    parts = torch.arange(tokens.shape[0]).split(counts.flatten().tolist())
    ranks, experts = counts.shape
    order = torch.cat([parts[rank * experts + expert] for expert in range(experts) for rank in range(ranks)])
    totals = counts.sum(0)
    totals = totals if expert_token_num_type == COUNT else totals.cumsum(0)
    scales = torch.empty(0) if per_token_scales is None else per_token_scales[order]
    return tokens[order], scales, order.int(), totals.to(expert_token_num_per_rank.dtype)


def need_no_padding(padded_mode: bool) -> None:
    if padded_mode:
        raise NotSimulated("npu_moe_token_permute: the simulator has no padded_mode")


@kernel("npu_moe_token_permute")
def token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None, padded_mode: bool
) -> tuple[Tensor, Tensor]:
    """Copies of tokens by expert, and where each copy went; a number that is not positive leaves so many out."""
    need_no_padding(padded_mode)
    order = indices.flatten().sort(stable=True).indices
    number = num_out_tokens or 0
    kept = order[:number] if number > 0 else order[: order.numel() + number]
    return tokens[kept // (indices.numel() // tokens.shape[0])], order.argsort().int()


def unpermuted(permuted: Tensor, places: Tensor, probs: Tensor | None) -> Tensor:
    places = places.long()
    rows = permuted[places.clamp_max(permuted.shape[0] - 1)] * (places < permuted.shape[0])[:, None]
    rows = rows.unflatten(0, (-1, 1 if probs is None else probs.shape[1]))
    return (rows if probs is None else rows * probs[..., None]).sum(1).to(permuted.dtype)


@kernel("npu_moe_token_permute_grad")
def token_permute_grad(
    tokens: Tensor, grad_permuted_tokens: Tensor, indices: Tensor, sorted_indices: Tensor, padded_mode: bool
) -> Tensor:
    need_no_padding(padded_mode)
    ones = torch.ones(tokens.shape[0], indices.numel() // tokens.shape[0], dtype=tokens.dtype)
    return unpermuted(grad_permuted_tokens, sorted_indices, ones)


@kernel("npu_moe_token_permute_grad_v2")
def token_permute_grad_v2(
    grad_permuted_tokens: Tensor, sorted_indices: Tensor, tokens_size_0: int, tokens_dtype: torch.dtype,
    num_topK: int, padded_mode: bool,
) -> Tensor:  # fmt: skip
    need_no_padding(padded_mode)
    ones = torch.ones(tokens_size_0, num_topK)
    return unpermuted(grad_permuted_tokens, sorted_indices, ones).to(tokens_dtype)


@kernel("npu_moe_token_unpermute")
def token_unpermute(
    permuted_tokens: Tensor, sorted_indices: Tensor, probs: Tensor | None, padded_mode: bool
) -> Tensor:
    need_no_padding(padded_mode)
    return unpermuted(permuted_tokens, sorted_indices, probs)


@kernel("_npu_moe_token_unpermute")
def token_unpermute_for_training(
    permuted_tokens: Tensor, sorted_indices: Tensor, probs: Tensor | None, padded_mode: bool
) -> tuple[Tensor, Tensor]:
    """The second result is what backward needs: the rows, where there are probabilities."""
    return token_unpermute(permuted_tokens, sorted_indices, probs, padded_mode), permuted_tokens.clone()


@kernel("npu_moe_token_unpermute_grad")
def token_unpermute_grad(
    permuted_tokens: Tensor, grad_unpermuted_tokens: Tensor, sorted_indices: Tensor, probs: Tensor | None,
    padded_mode: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    need_no_padding(padded_mode)
    if probs is None:
        (grad,) = gradients(
            lambda x: unpermuted(x, sorted_indices, None), [permuted_tokens], [grad_unpermuted_tokens]
        )
        return grad, torch.empty(0)
    inputs = [permuted_tokens, probs]
    return gradients(lambda x, p: unpermuted(x, sorted_indices, p), inputs, [grad_unpermuted_tokens])


@kernel("npu_moe_token_unpermute_grad_v2")
def token_unpermute_grad_v2(
    grad_unpermuted_tokens: Tensor, sorted_indices: Tensor, permuted_tokens_size_0: int,
    permuted_tokens_dtype: torch.dtype, probs: Tensor | None, padded_mode: bool, permuted_tokens: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Without probabilities the rows themselves do not matter, and may be left out."""
    if permuted_tokens is None:
        width = grad_unpermuted_tokens.shape[-1]
        permuted_tokens = torch.zeros(permuted_tokens_size_0, width, dtype=permuted_tokens_dtype)
    return token_unpermute_grad(permuted_tokens, grad_unpermuted_tokens, sorted_indices, probs, padded_mode)


@kernel("npu_top_k_top_p")
def top_k_top_p(logits: Tensor, p: Tensor | None, k: Tensor | None) -> Tensor:
    """Logits outside the k largest, and outside those that make up the probability p, become minus infinity."""
    ordered, index = logits.float().sort(dim=-1, stable=True)
    if k is not None:
        least = ordered.gather(-1, (logits.shape[-1] - k.long().clamp(1, logits.shape[-1]))[..., None])
        ordered = ordered.masked_fill(ordered < least, float("-inf"))
    if p is not None:
        outside = ordered.softmax(-1).cumsum(-1) <= 1 - p.float()[..., None]
        outside[..., -1] = False
        ordered = ordered.masked_fill(outside, float("-inf"))
    return torch.empty_like(ordered).scatter(-1, index, ordered).to(logits.dtype)
