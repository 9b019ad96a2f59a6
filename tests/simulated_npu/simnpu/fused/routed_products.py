"""Products of experts with quantised weights, gated, or weighed and summed into the tokens that they are of."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.quantisation import product, quantised_product, scale_of, unpacked
from simnpu.fused.quantised_layers import grouped_matmul_swiglu_quant

ENDS = 0  # group_list has the groups' ends; otherwise their lengths


def group_lengths(group_list: Tensor, kind: int | None) -> list[int]:
    return (group_list.diff(prepend=group_list.new_zeros(1)) if kind == ENDS else group_list).tolist()


def product_of_expert(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, bias: Tensor | None
) -> Tensor:
    """x [M, K] of int8 by one weight [K, N], of int8 or four bits; scales [G, N] count for K / G rows each.

    With four bits the bias has what x loses in the card's halves, eight times the weights' sums, which it is given for.
    """
    if weight.dtype != torch.int32:
        return quantised_product(x, weight, scale, None, bias)
    weight = unpacked(weight)
    groups = scale.shape[0]
    parts = zip(x.unflatten(1, (groups, -1)).unbind(1), weight.unflatten(0, (groups, -1)), strict=True)
    total = torch.zeros(x.shape[0], weight.shape[1])
    for i, (left, right) in enumerate(parts):
        total += product(left.double() - 8, right).float() * scale[i]
        if offset is not None:
            total += left.float().sum(1, keepdim=True) * offset[i]
    return total if bias is None else total + bias.float()


@kernel("npu_grouped_matmul_finalize_routing")
def grouped_matmul_finalize_routing(
    x: Tensor, w: Tensor, group_list: Tensor, scale: Tensor | None, bias: Tensor | None, offset: Tensor | None,
    pertoken_scale: Tensor | None, shared_input: Tensor | None, logit: Tensor | None, row_index: Tensor | None,
    dtype: torch.dtype | None, shared_input_weight: float | None, shared_input_offset: int | None,
    output_bs: int | None, group_list_type: int | None,
) -> Tensor:  # fmt: skip
    """Weighed rows are added to the tokens of `row_index`, the shared input to those from its offset on."""
    check(
        scale is not None and row_index is not None,
        "npu_grouped_matmul_finalize_routing: give scale and row_index",
    )
    if x.dtype != torch.int8 or w.dtype not in (torch.int8, torch.int32):
        raise NotSimulated(
            f"npu_grouped_matmul_finalize_routing: the simulator has no {x.dtype} by {w.dtype}"
        )
    lengths = group_lengths(group_list, group_list_type)
    scales = scale_of(scale)
    rows = torch.cat(
        [
            product_of_expert(part, *(None if v is None else v[i] for v in (w, scales, offset, bias)))
            for i, part in enumerate(x[: sum(lengths)].split(lengths))
        ]
    )
    for factor in (pertoken_scale, logit):
        rows = rows if factor is None else rows * factor.float().reshape(-1, 1)[: len(rows)]
    out = torch.zeros(output_bs or len(rows), rows.shape[1])
    out.index_add_(0, row_index.long()[: len(rows)], rows)
    if shared_input is not None:
        first = shared_input_offset or 0
        out[first : first + len(shared_input)] += shared_input_weight * shared_input.float()
    return out.to(dtype or torch.float32)


@kernel("npu_grouped_matmul_swiglu_quant_v2")
def grouped_matmul_swiglu_quant_v2(
    x: Tensor, weight: list[Tensor], weight_scale: list[Tensor], x_scale: Tensor, group_list: Tensor,
    smooth_scale: Tensor | None, quant_dtype: int | None, group_list_type: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One weight of all groups, or one of each."""
    if x.dtype != torch.int8 or weight[0].dtype != torch.int8 or smooth_scale is not None or quant_dtype != 1:
        raise NotSimulated("npu_grouped_matmul_swiglu_quant_v2: the simulator has int8 without smooth_scale")
    ends = group_list if group_list_type == ENDS else group_list.cumsum(0)
    whole, scales = (v[0] if len(v) == 1 else torch.stack(v) for v in (weight, weight_scale))
    return grouped_matmul_swiglu_quant(x, whole, ends, scales, x_scale)[:2]


@kernel("npu_quant_matmul_reduce_sum")
def quant_matmul_reduce_sum(
    x1: Tensor, x2: Tensor, x1_scale: Tensor | None, x2_scale: Tensor | None
) -> Tensor:
    """The sum of a batch of products, in bf16."""
    total = product(x1, x2).float()
    total = total if x2_scale is None else total * x2_scale.float()
    return (total if x1_scale is None else total * x1_scale.float()[..., None]).sum(0).bfloat16()
