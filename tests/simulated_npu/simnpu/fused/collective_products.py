"""Matrix products with a collective before or after them; the process group is found by its communicator's name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.matmul import group_products
from simnpu.fused.quantisation import plain_weight, quantised_product


def group_of(hcom: str) -> dist.ProcessGroup:
    """The process group whose communicator has this name, which get_hccl_comm_name tells."""
    npu = torch.device("npu")
    for group in dist.distributed_c10d._world.pg_map:
        if npu in group._device_types:
            backend = group._get_backend(npu)
            if backend.get_hccl_comm_name(dist.get_rank(), init_comm=False) == hcom:
                return group
    raise RuntimeError(f"no communicator of this process is named {hcom!r}")


def group_of_size(hcom: str, world_size: int) -> dist.ProcessGroup:
    group = group_of(hcom)
    check(group.size() == world_size, f"world_size is {world_size}, but {hcom} has {group.size()} ranks")
    return group


def summed(values: Tensor, hcom: str) -> Tensor:
    """The sum over all ranks; as everything here, tensors of the CPU."""
    total = values.npu()
    dist.all_reduce(total, group=group_of(hcom))
    return total.cpu()


def exchanged(values: Tensor, group: dist.ProcessGroup, received: list[int], sent: list[int]) -> Tensor:
    """Rows that other ranks have for this one, by rank."""
    found = torch.empty(sum(received), *values.shape[1:], dtype=values.dtype, device="npu")
    dist.all_to_all_single(found, values.contiguous().npu(), received, sent, group=group)
    return found.cpu()


def with_bias(values: Tensor, bias: Tensor | None) -> Tensor:
    return values if bias is None else values + bias.float()


def need_sum(reduce_op: str) -> None:
    check(reduce_op == "sum", f"reduce_op supports only sum, but got {reduce_op}")


@kernel("npu_mm_all_reduce_base")
def mm_all_reduce_base(
    x1: Tensor, x2: Tensor, hcom: str, reduce_op: str, bias: Tensor | None, antiquant_scale: Tensor | None,
    antiquant_offset: Tensor | None, x3: Tensor | None, dequant_scale: Tensor | None, pertoken_scale: Tensor | None,
    antiquant_group_size: int, comm_turn: int, comm_mode: str | None,
) -> Tensor:  # fmt: skip
    """The sum over ranks of x1 @ x2 + bias + x3; quantised inputs give float16, or bfloat16 where their scale is."""
    need_sum(reduce_op)
    check(x2.dim() == 2 and x1.shape[-1] == x2.shape[0], f"{tuple(x1.shape)} does not fit {tuple(x2.shape)}")
    kind = x1.dtype
    if dequant_scale is not None:
        tokens = None if pertoken_scale is None else pertoken_scale.view(x1.shape[:-1])
        total = quantised_product(x1, x2, dequant_scale, tokens, bias)
        kind = torch.bfloat16 if dequant_scale.dtype == torch.bfloat16 else torch.float16
    else:
        if antiquant_scale is not None:
            x2 = plain_weight(x2, antiquant_scale, antiquant_offset, antiquant_group_size)
        total = with_bias(x1.float() @ x2.float(), bias)
    return summed(total if x3 is None else total + x3.float(), hcom).to(kind)


@kernel("npu_all_gather_base_mm")
def all_gather_base_mm(
    input: Tensor, x2: Tensor, hcom: str, world_size: int, bias: Tensor | None, gather_index: int,
    gather_output: bool, comm_turn: int, comm_mode: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """All ranks' inputs, one below the other, times x2; and the inputs."""
    check(gather_index == 0, f"gather_index supports only 0, but got {gather_index}")
    group = group_of_size(hcom, world_size)
    rows = torch.empty(world_size * input.shape[0], input.shape[1], dtype=input.dtype, device="npu")
    dist.all_gather_into_tensor(rows, input.contiguous().npu(), group=group)
    gathered = rows.cpu()
    out = with_bias(gathered.float() @ x2.float(), bias).to(input.dtype)
    return out, gathered if gather_output else torch.empty(0, dtype=input.dtype)


@kernel("npu_mm_reduce_scatter_base")
def mm_reduce_scatter_base(
    input: Tensor, x2: Tensor, hcom: str, world_size: int, reduce_op: str, bias: Tensor | None, comm_turn: int,
    comm_mode: str | None,
) -> Tensor:  # fmt: skip
    """This rank's rows of the sum over ranks of input @ x2."""
    need_sum(reduce_op)
    group = group_of_size(hcom, world_size)
    check(input.shape[0] % world_size == 0, f"{input.shape[0]} rows are not divisible by {world_size} ranks")
    total = with_bias(input.float() @ x2.float(), bias).npu()
    part = torch.empty(input.shape[0] // world_size, x2.shape[1], device="npu")
    dist.reduce_scatter_tensor(part, total, group=group)
    return part.cpu().to(input.dtype)


@kernel("npu_all_to_all_matmul")
def all_to_all_matmul(
    x1: Tensor, x2: Tensor, hcom: str, world_size: int, bias: Tensor | None, all2all_axes: list[int] | None,
    all2all_out_flag: bool, comm_mode: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each rank gets its rows of every rank's x1, side by side, times x2; and these rows."""
    need_axes(all2all_axes, [-2, -1])
    even = [x1.shape[0] // world_size] * world_size
    parts = exchanged(x1, group_of_size(hcom, world_size), even, even)
    rows = parts.unflatten(0, (world_size, -1)).transpose(0, 1).flatten(1)
    out = with_bias(rows.float() @ x2.float(), bias).to(x1.dtype)
    return out, rows if all2all_out_flag else torch.empty(0, dtype=x1.dtype)


@kernel("npu_matmul_all_to_all")
def matmul_all_to_all(
    x1: Tensor, x2: Tensor, hcom: str, world_size: int, bias: Tensor | None, all2all_axes: list[int] | None,
    comm_mode: str | None,
) -> Tensor:  # fmt: skip
    """Each rank gets its columns of every rank's x1 @ x2, one below the other."""
    need_axes(all2all_axes, [-1, -2])
    out = with_bias(x1.float() @ x2.float(), bias).to(x1.dtype)
    columns = torch.cat(out.chunk(world_size, 1))
    even = [x1.shape[0]] * world_size
    return exchanged(columns, group_of_size(hcom, world_size), even, even)


def need_axes(given: list[int] | None, known: list[int]) -> None:
    if given is not None and list(given) != known:
        raise NotSimulated(f"all2all_axes: the simulator knows {known}, not {list(given)}")


def of_ranks(counts: list[int], ranks: int) -> list[list[int]]:
    """Counts by rank and then by expert, as rows of ranks."""
    experts = len(counts) // ranks
    return [[int(count) for count in counts[i * experts : (i + 1) * experts]] for i in range(ranks)]


def transposed(blocks: Tensor, counts: list[list[int]]) -> Tensor:
    """Blocks of rows that lie by the first index and then by the second come to lie the other way round."""
    pieces = blocks.split([count for row in counts for count in row])
    width = len(counts[0])
    return torch.cat([pieces[i * width + j] for j in range(width) for i in range(len(counts))])


def expert_products(rows: Tensor, weight: Tensor, lengths: list[int], is_transposed: bool) -> Tensor:
    matrices = weight.transpose(1, 2) if is_transposed else weight
    parts = [part.float() for part in rows.split(lengths)]
    return torch.cat(group_products(parts, list(matrices.float()), None)).to(rows.dtype)


def own_product(x: Tensor | None, weight: Tensor | None, is_transposed: bool) -> Tensor | None:
    """The product of the expert that every rank has for itself."""
    if x is None or weight is None:
        return None
    return (x.float() @ (weight.t() if is_transposed else weight).float()).to(x.dtype)


@kernel("npu_alltoallv_gmm")
def alltoallv_gmm(
    gmm_x: Tensor, gmm_weight: Tensor, hcom: str, ep_world_size: int, send_counts: list[int], recv_counts: list[int],
    mm_x: Tensor | None, mm_weight: Tensor | None, trans_gmm_weight: bool, trans_mm_weight: bool,
    permute_out_flag: bool, comm_mode: str | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Tokens go to the ranks of their experts, are sorted by expert and multiplied; counts go by rank, then expert."""
    sent, received = of_ranks(send_counts, ep_world_size), of_ranks(recv_counts, ep_world_size)
    group = group_of_size(hcom, ep_world_size)
    rows = exchanged(gmm_x, group, [sum(row) for row in received], [sum(row) for row in sent])
    rows = transposed(rows, received)
    lengths = [sum(row[expert] for row in received) for expert in range(len(received[0]))]
    out = expert_products(rows, gmm_weight, lengths, trans_gmm_weight)
    return out, own_product(mm_x, mm_weight, trans_mm_weight), rows if permute_out_flag else None


@kernel("npu_gmm_alltoallv")
def gmm_alltoallv(
    gmm_x: Tensor, gmm_weight: Tensor, hcom: str, ep_world_size: int, send_counts: list[int], recv_counts: list[int],
    mm_x: Tensor | None, mm_weight: Tensor | None, trans_gmm_weight: bool, trans_mm_weight: bool,
    comm_mode: str | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The way back: rows by expert are multiplied, sorted by rank and sent; counts go by rank, then expert."""
    sent, received = of_ranks(send_counts, ep_world_size), of_ranks(recv_counts, ep_world_size)
    by_expert = [list(row) for row in zip(*sent, strict=True)]
    out = expert_products(gmm_x, gmm_weight, [sum(row) for row in by_expert], trans_gmm_weight)
    group = group_of_size(hcom, ep_world_size)
    rows = transposed(out, by_expert)
    found = exchanged(rows, group, [sum(row) for row in received], [sum(row) for row in sent])
    return found, own_product(mm_x, mm_weight, trans_mm_weight)
