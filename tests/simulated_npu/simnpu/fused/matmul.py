"""Matrix products under torch_npu's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.formats import TYPES
from simnpu.fused.kernels import NotSimulated, kernel
from simnpu.fused.quantisation import plain_weight, quantised_product


@kernel("npu_linear")
def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(input, weight, bias)


@kernel("npu_linear_backward")
def linear_backward(grad: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return grad @ weight, grad.transpose(-1, -2) @ input


@kernel("npu_bmmV2")
def bmm_v2(input: Tensor, mat2: Tensor, output_sizes: list[int]) -> Tensor:
    result = torch.matmul(input, mat2)
    return result.reshape(output_sizes) if output_sizes else result


@kernel("npu_bmm_v2_mat1_backward")
def bmm_v2_mat1_backward(grad: Tensor, mat1: Tensor, mat2: Tensor, size: list[int]) -> Tensor:
    return (grad @ mat2.transpose(-1, -2)).reshape(size)


@kernel("npu_bmm_v2_mat2_backward")
def bmm_v2_mat2_backward(grad: Tensor, mat1: Tensor, mat2: Tensor, size: list[int]) -> Tensor:
    return (mat1.transpose(-1, -2) @ grad).reshape(size)


ROWS, COLUMNS = 0, 2  # values of group_type


def group_lengths(group_list: Tensor | list[int], group_list_type: int | None) -> list[int]:
    """How many rows or columns each group has; the list has lengths (type 1) or where groups end."""
    ends = [int(end) for end in group_list]
    if group_list_type == 1:
        return ends
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def group_products(x: list[Tensor], matrices: list[Tensor], offsets: list[Tensor] | None) -> list[Tensor]:
    return [
        part @ matrix + (offsets[i] if offsets else 0)
        for i, (part, matrix) in enumerate(zip(x, matrices, strict=True))
    ]


def of_groups(values: list[Tensor] | None, dims: int) -> list[Tensor] | None:
    """One tensor for each group, from one for all with a dim more, or a list of them."""
    if not values:
        return None
    return [item for value in values for item in (value if value.dim() == dims + 1 else [value])]


@kernel("npu_grouped_matmul", "npu_grouped_matmul.List")
def grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    bias: list[Tensor] | None,
    group_list: Tensor | list[int] | None,
    split_item: int | None,
    group_type: int | None,
    group_list_type: int | None,
    scale: list[Tensor] | None,
    per_token_scale: list[Tensor] | None,
    antiquant_scale: list[Tensor] | None,
    antiquant_offset: list[Tensor] | None,
    output_dtype: int | None,
) -> list[Tensor]:
    """Each group of rows times its own matrix: experts. With group_type 2 the columns of x meet rows of the weight."""
    offsets, matrices = of_groups(bias, 1), of_groups(weight, 2)
    if antiquant_scale:
        lows = of_groups(antiquant_offset, 1) or [None] * len(matrices)
        scales = of_groups(antiquant_scale, 1)
        matrices = [
            plain_weight(matrix, scales[i], lows[i], 0).to(x[0].dtype) for i, matrix in enumerate(matrices)
        ]
    lengths = group_lengths(group_list, group_list_type) if group_list is not None else []
    if not lengths or len(x) > 1:
        parts = list(x)
    elif group_type in (ROWS, None):
        parts = list(x[0][: sum(lengths)].split(lengths))
    elif group_type == COLUMNS and len(weight) == 1:
        products = group_products(list(x[0].split(lengths, 1)), list(weight[0].split(lengths)), offsets)
        return [torch.stack(products)] if split_item in (2, 3) else products
    else:
        raise NotSimulated(f"npu::npu_grouped_matmul: group_type {group_type} with {len(x)} inputs")
    if scale:
        scales, kind = of_groups(scale, 1), TYPES[5 if output_dtype is None else output_dtype]
        tokens = torch.cat(per_token_scale).split([len(part) for part in parts]) if per_token_scale else None
        products = [
            quantised_product(part, matrices[i], scales[i], tokens and tokens[i], offsets and offsets[i]).to(
                kind
            )
            for i, part in enumerate(parts)
        ]
    else:
        products = group_products(parts, matrices, offsets)
    return [torch.cat(products)] if split_item in (2, 3) else products
