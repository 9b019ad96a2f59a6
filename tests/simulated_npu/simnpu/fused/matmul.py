"""Matrix products under torch_npu's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, kernel


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


@kernel("npu_grouped_matmul")
def grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    bias: list[Tensor] | None,
    group_list: Tensor | None,
    split_item: int | None,
    group_type: int | None,
    group_list_type: int | None,
) -> list[Tensor]:
    """Each group of rows times its own matrix: experts. Types: -1 no groups, 0 rows are split by group_list."""
    matrices = [matrix for item in weight for matrix in (item if item.dim() == 3 else [item])]
    if group_list is None:
        parts = list(x)
    elif group_type == 0 and len(x) == 1:
        ends = group_list.tolist()
        lengths = (
            ends
            if group_list_type == 1
            else [end - start for start, end in zip([0, *ends], ends, strict=False)]
        )
        parts = list(x[0][: sum(lengths)].split(lengths))
    else:
        raise NotSimulated(f"npu::npu_grouped_matmul: group_type {group_type} with {len(x)} inputs")
    offsets = [offset for item in bias for offset in (item if item.dim() == 2 else [item])] if bias else None
    products = [
        part @ matrix + (offsets[i] if offsets else 0)
        for i, (part, matrix) in enumerate(zip(parts, matrices, strict=True))
    ]
    return [torch.cat(products)] if split_item in (2, 3) else products
