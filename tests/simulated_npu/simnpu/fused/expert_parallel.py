"""Experts on several ranks: tokens go to the ranks of their experts, and what those make of them comes back weighed."""

from __future__ import annotations

import ctypes

import torch
import torch.distributed as dist
from torch import Tensor

from simnpu.fused.collective_products import exchanged, group_of_size, of_ranks, transposed
from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.norms import rms_norm
from simnpu.fused.quantisation import dynamic

NOT_QUANTISED, DYNAMIC = 0, 2  # values of quant_mode
CUMULATIVE, COUNT = 0, 1  # values of expert_token_nums_type
BATCH_AT, ROWS_AT, MICRO_BATCH_AT = 8, 272, 288  # bytes of a worker's context
INFO_SIZE = 128  # numbers a row has in what dispatch_v2 tells combine_v2; the first three count


def experts_of_rank(experts: int, ranks: int, tensor_ranks: int, shared_ranks: int) -> int:
    """How many experts a rank has."""
    if tensor_ranks > 1 or shared_ranks > 0:
        raise NotSimulated(
            "the simulator knows neither tensor parallel groups nor ranks of shared experts here"
        )
    check(experts % ranks == 0, f"moe_expert_num {experts} is not divisible by {ranks} ranks")
    return experts // ranks


def active_of(expert_ids: Tensor, mask: Tensor | None) -> Tensor:
    """Which copies [B * K] are sent at all."""
    if mask is None:
        return torch.ones(expert_ids.numel(), dtype=torch.bool)
    wide = mask.bool() if mask.dim() == 2 else mask.bool()[:, None]
    return wide.expand(expert_ids.shape).flatten()


def dispatched(
    x: Tensor, expert_ids: Tensor, group_ep: str, ranks: int, rank: int, experts: int, scales: Tensor | None,
    mask: Tensor | None, quant_mode: int, global_bs: int, nums_type: int, own: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Rows by expert and then by rank, their scales, sources [A, 3] and the numbers that tell of them."""
    if quant_mode not in (NOT_QUANTISED, DYNAMIC):
        raise NotSimulated(f"the simulator has no quant_mode {quant_mode} for tokens that go to experts")
    group, k = group_of_size(group_ep, ranks), expert_ids.shape[1]
    copies, active = expert_ids.flatten().long(), active_of(expert_ids, mask)
    order = torch.where(active, copies, experts).sort(stable=True).indices[: int(active.sum())]
    sent_counts = torch.bincount(copies[active], minlength=experts)
    received = of_ranks(exchanged(sent_counts, group, [own] * ranks, [own] * ranks).tolist(), ranks)
    sent_rows = [sum(row) for row in of_ranks(sent_counts.tolist(), ranks)]
    received_rows = [sum(row) for row in received]
    places = torch.empty(copies.numel(), dtype=torch.int32)
    for expert in range(experts):
        mine = copies == expert
        places[mine] = torch.arange(int(mine.sum()), dtype=torch.int32)
    sources = torch.stack((torch.full_like(order, rank), order // k, order % k), 1).int()
    arrived = [
        transposed(exchanged(part, group, received_rows, sent_rows), received)
        for part in (x[order // k], sources)
    ]
    by_expert = torch.tensor(received).t()  # [own, ranks]
    rows, row_scales = arrived[0], torch.empty(0)
    if quant_mode == DYNAMIC:
        smooth = None
        if scales is not None:
            smooth = scales[rank * own + torch.repeat_interleave(torch.arange(own), by_expert.sum(1))]
        rows, row_scales = dynamic(rows, None, smooth, (-1,))
    whole = (global_bs or x.shape[0] * ranks) * min(own, k)
    padded = rows.new_zeros(max(whole, len(rows)), rows.shape[1])
    padded[: len(rows)] = rows
    counts = by_expert.sum(1)
    tokens = counts.cumsum(0) if nums_type == CUMULATIVE else counts
    return padded, row_scales.flatten(), places, arrived[1], tokens, by_expert.flatten().cumsum(0).int()


@kernel("npu_moe_distribute_dispatch")
def distribute_dispatch(
    x: Tensor, expert_ids: Tensor, group_ep: str, ep_world_size: int, ep_rank_id: int, moe_expert_num: int,
    scales: Tensor | None, x_active_mask: Tensor | None, tp_world_size: int, shared_expert_num: int,
    shared_expert_rank_num: int, quant_mode: int, global_bs: int, expert_token_nums_type: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Rows that this rank's experts get, their scales, and the place of each copy among those for its expert.

    Then the experts' tokens, sums of the tokens by expert and rank, and two results that only other layouts have.
    """
    own = experts_of_rank(moe_expert_num, ep_world_size, tp_world_size, shared_expert_rank_num)
    rows, row_scales, places, _, tokens, sums = dispatched(
        x, expert_ids, group_ep, ep_world_size, ep_rank_id, moe_expert_num, scales, x_active_mask, quant_mode,
        global_bs, expert_token_nums_type, own,
    )  # fmt: skip
    return rows, row_scales, places, tokens, sums, torch.zeros(1, dtype=torch.int32), torch.empty(0)


@kernel("npu_moe_distribute_dispatch_v2")
def distribute_dispatch_v2(
    x: Tensor, expert_ids: Tensor, group_ep: str, ep_world_size: int, ep_rank_id: int, moe_expert_num: int,
    scales: Tensor | None, x_active_mask: Tensor | None, tp_world_size: int, shared_expert_num: int,
    shared_expert_rank_num: int, quant_mode: int, global_bs: int, expert_token_nums_type: int, comm_alg: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The same, with the rank, token and choice of each row instead of the places of copies."""
    own = experts_of_rank(moe_expert_num, ep_world_size, tp_world_size, shared_expert_rank_num)
    rows, row_scales, _, sources, tokens, sums = dispatched(
        x, expert_ids, group_ep, ep_world_size, ep_rank_id, moe_expert_num, scales, x_active_mask, quant_mode,
        global_bs, expert_token_nums_type, own,
    )  # fmt: skip
    info = torch.zeros(len(rows), INFO_SIZE, dtype=torch.int32)
    info[: len(sources), :3] = sources
    return rows, row_scales, info.flatten(), tokens, sums, torch.zeros(1, dtype=torch.int32), torch.empty(0)


@kernel("npu_moe_distribute_combine")
def distribute_combine(
    expand_x: Tensor, expert_ids: Tensor, expand_idx: Tensor, ep_send_counts: Tensor, expert_scales: Tensor,
    group_ep: str, ep_world_size: int, ep_rank_id: int, moe_expert_num: int, tp_send_counts: Tensor | None,
    x_active_mask: Tensor | None, shared_expert_x: Tensor | None, tp_world_size: int, shared_expert_num: int,
    shared_expert_rank_num: int, global_bs: int,
) -> Tensor:  # fmt: skip
    """Sums [B, H] of what came back for each token, weighed; what the shared expert made of it is added.

    `expand_idx` and `global_bs` follow from the experts of this rank's tokens.
    """
    own = experts_of_rank(moe_expert_num, ep_world_size, tp_world_size, shared_expert_rank_num)
    group = group_of_size(group_ep, ep_world_size)
    counts = (
        ep_send_counts.flatten()
        .long()
        .diff(prepend=torch.zeros(1, dtype=torch.int64))
        .view(own, ep_world_size)
    )
    rows = transposed(expand_x[: int(counts.sum())], counts.tolist())
    copies, active = expert_ids.flatten().long(), active_of(expert_ids, x_active_mask)
    order = torch.where(active, copies, moe_expert_num).sort(stable=True).indices[: int(active.sum())]
    mine = torch.bincount(copies[active], minlength=moe_expert_num).view(ep_world_size, own).sum(1)
    back = exchanged(rows, group, mine.tolist(), counts.sum(0).tolist()).float()
    k = expert_ids.shape[1]
    found = torch.zeros(expert_ids.shape[0], expand_x.shape[1])
    found.index_add_(0, order // k, back * expert_scales.float().flatten()[order, None])
    shared = 0 if shared_expert_x is None else shared_expert_x.float().view_as(found)
    return (found + shared).to(expand_x.dtype)


@kernel("npu_moe_distribute_combine_v2")
def distribute_combine_v2(
    expand_x: Tensor, expert_ids: Tensor, assist_info_for_combine: Tensor, ep_send_counts: Tensor,
    expert_scales: Tensor, group_ep: str, ep_world_size: int, ep_rank_id: int, moe_expert_num: int,
    tp_send_counts: Tensor | None, x_active_mask: Tensor | None, shared_expert_x: Tensor | None, tp_world_size: int,
    shared_expert_num: int, shared_expert_rank_num: int, global_bs: int, comm_alg: str,
) -> Tensor:  # fmt: skip
    """The same; what dispatch_v2 tells of the rows is not needed either."""
    return distribute_combine(
        expand_x, expert_ids, assist_info_for_combine, ep_send_counts, expert_scales, group_ep, ep_world_size,
        ep_rank_id, moe_expert_num, tp_send_counts, x_active_mask, shared_expert_x, tp_world_size, shared_expert_num,
        shared_expert_rank_num, global_bs,
    )  # fmt: skip


@kernel("npu_moe_distribute_combine_add_rms_norm")
def distribute_combine_add_rms_norm(
    expand_x: Tensor, expert_ids: Tensor, expand_idx: Tensor, ep_send_counts: Tensor, expert_scales: Tensor,
    residual_x: Tensor, gamma: Tensor, group_ep: str, ep_world_size: int, ep_rank_id: int, moe_expert_num: int,
    tp_send_counts: Tensor | None, x_active_mask: Tensor | None, shared_expert_x: Tensor | None, tp_world_size: int,
    shared_expert_num: int, shared_expert_rank_num: int, global_bs: int, norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The same added to the residual [B, 1, H], normed; then rstd, and the sum itself."""
    combined = distribute_combine(
        expand_x, expert_ids, expand_idx, ep_send_counts, expert_scales, group_ep, ep_world_size, ep_rank_id,
        moe_expert_num, tp_send_counts, x_active_mask, shared_expert_x, tp_world_size, shared_expert_num,
        shared_expert_rank_num, global_bs,
    )  # fmt: skip
    total = combined.float().view(residual_x.shape) + residual_x.float()
    y, rstd = rms_norm(total, gamma.float(), norm_eps)
    return y.to(residual_x.dtype), rstd, total.to(residual_x.dtype)


@kernel("_npu_distribute_barrier")
def distribute_barrier(x_ref: Tensor, group: str, world_size: int, time_out: Tensor | None) -> Tensor:
    """Waits for all ranks; HCCL's own timeout counts, whatever `time_out` says."""
    dist.barrier(group_of_size(group, world_size))
    return x_ref.clone()


@kernel("npu_attention_worker_combine")
def attention_worker_combine(
    schedule_context: Tensor, expert_scales: Tensor, layer_id: Tensor, hidden_size: int, token_dtype: int,
    need_schedule: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What other workers' experts made of each token, weighed and summed, and a shared expert's; the next layer.

    The context tells where on the card their rows lie: [micro-batches, batch, experts of a token + 1, hidden size].
    """
    if need_schedule:
        raise NotSimulated("npu_attention_worker_combine: the simulator waits for no other worker")
    numbers = schedule_context.view(torch.uint8).numpy()
    batch = int(numbers[BATCH_AT : BATCH_AT + 4].view("uint32")[0])
    address = int(numbers[ROWS_AT : ROWS_AT + 8].view("uint64")[0])
    micro_batch = int(numbers[MICRO_BATCH_AT : MICRO_BATCH_AT + 4].view("uint32")[0])
    kind, k = torch.bfloat16 if token_dtype == 1 else torch.float16, expert_scales.shape[1]
    size = batch * (k + 1) * hidden_size * kind.itemsize
    memory = (ctypes.c_char * size).from_address(address + micro_batch * size)
    rows = torch.frombuffer(memory, dtype=kind).view(batch, k + 1, hidden_size)[: len(expert_scales)].float()
    total = (rows[:, :k] * expert_scales.float()[..., None]).sum(1) + rows[:, k]
    return total.to(kind), layer_id + 1
