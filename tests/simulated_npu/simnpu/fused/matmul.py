"""Matrix products under torch_npu's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.formats import TYPES
from simnpu.fused.kernels import NotSimulated, check, kernel
from simnpu.fused.quantisation import integers, plain_weight, quantised_product, scale_of


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
FLOATS = (torch.float16, torch.float32, torch.bfloat16)


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


@kernel("npu_grouped_matmul_add_")
def grouped_matmul_add_(
    input: Tensor, x: Tensor, weight: Tensor, group_list: Tensor, transpose_x: bool, transpose_weight: bool,
    group_type: int, group_list_type: int | None,
) -> Tensor:  # fmt: skip
    """Adds the gradient of each group's matrix: its rows of x, turned, times its rows of weight, in float32."""
    if not transpose_x or transpose_weight or group_type != COLUMNS:
        raise NotSimulated("npu_grouped_matmul_add: the simulator knows transpose_x and group_type 2 only")
    lengths = group_lengths(group_list, group_list_type)
    rows = [part.float().t() for part in x[: sum(lengths)].split(lengths)]
    products = group_products(rows, list(weight[: sum(lengths)].float().split(lengths)), None)
    return input.add_(torch.stack(products).view_as(input))


@kernel("npu_grouped_matmul_add")
def grouped_matmul_add(
    input: Tensor, x: Tensor, weight: Tensor, group_list: Tensor, transpose_x: bool, transpose_weight: bool,
    group_type: int, group_list_type: int | None,
) -> Tensor:  # fmt: skip
    return grouped_matmul_add_(
        input.clone(), x, weight, group_list, transpose_x, transpose_weight, group_type, group_list_type
    )


def need_order(name: str, given: list[int] | None, known: tuple[list[int], ...]) -> list[int]:
    """A permutation of three axes that the operator takes; the first one unless given."""
    order = known[0] if given is None else list(given)
    check(order in known, f"{name} should be {' or '.join(map(str, known))}, but got {order}")
    return order


@kernel("npu_transpose_batchmatmul")
def transpose_batchmatmul(
    input: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, perm_x1: list[int] | None,
    perm_x2: list[int] | None, perm_y: list[int] | None, batch_split_factor: int | None,
) -> Tensor:  # fmt: skip
    """Products of batches [B, M, K] and [B, K, N] after these permutations, as [M, B, N].

    With a scale int8 of [M, 1, B * N], with a split factor F [F, M, B * N / F].
    """
    for name, x in (("input", input), ("weight", weight)):
        check(x.dtype in FLOATS, f"The {name}'s type supported for float16, float32 and bfloat16.")
    first = input.permute(need_order("perm_x1", perm_x1, ([0, 1, 2], [1, 0, 2])))
    second = weight.permute(need_order("perm_x2", perm_x2, ([0, 1, 2], [0, 2, 1])))
    need_order("perm_y", perm_y, ([1, 0, 2],))
    out = first.float() @ second.float()
    out = (out if bias is None else out + bias.float()).transpose(0, 1)
    if scale is not None:
        return integers(out.flatten(1)[:, None] * scale_of(scale), 1)
    if batch_split_factor not in (None, 1):
        out = out.flatten(1).unflatten(1, (batch_split_factor, -1)).transpose(0, 1)
    return out.to(input.dtype)


AFTER_PRODUCT = {
    "": lambda product, x3: product,
    "add": lambda product, x3: product + x3.float(),
    "mul": lambda product, x3: product * x3.float(),
    "relu": lambda product, x3: F.relu(product),
    "gelu_erf": lambda product, x3: F.gelu(product),
    "gelu_tanh": lambda product, x3: F.gelu(product, approximate="tanh"),
}


@kernel("npu_fused_matmul")
def fused_matmul(
    x1: Tensor, x2: Tensor, bias: Tensor | None, x3: Tensor | None, fused_op_type: str
) -> Tensor:
    check(
        fused_op_type in AFTER_PRODUCT, f"fused_op_type {fused_op_type!r} is not one of {list(AFTER_PRODUCT)}"
    )
    product = x1.float() @ x2.float()
    return AFTER_PRODUCT[fused_op_type](product if bias is None else product + bias.float(), x3).to(x1.dtype)


def with_adapters(
    input: Tensor, x: Tensor, weight_b: Tensor, indices: Tensor, weight_a: Tensor | None, layer_idx: int, scale: float,
    y_offset: int, y_slice_size: int,
) -> Tensor:  # fmt: skip
    """Adds what each row's adapter [adapters, layers, out, in] makes of it to these columns; an index may have none."""
    some = indices.long() < weight_b.shape[0]
    chosen, rows = indices.long()[some], x[some].float()[:, None]
    if weight_a is not None:
        rows = rows @ weight_a[chosen, layer_idx].float().transpose(1, 2)
    added = (rows @ weight_b[chosen, layer_idx].float().transpose(1, 2))[:, 0] * scale
    result = input.clone()
    columns = slice(y_offset, None if y_slice_size < 0 else y_offset + y_slice_size)
    result[some, columns] = (input[some, columns].float() + added).to(input.dtype)
    return result


@kernel("npu_batch_gather_matmul")
def batch_gather_matmul(
    input: Tensor, x: Tensor, weight_b: Tensor, indices: Tensor, weight_a: Tensor | None, layer_idx: int, scale: float,
    y_offset: int, y_slice_size: int,
) -> Tensor:  # fmt: skip
    return with_adapters(input, x, weight_b, indices, weight_a, layer_idx, scale, y_offset, y_slice_size)


@kernel("npu_batch_gather_matmul_")
def batch_gather_matmul_(
    input: Tensor, x: Tensor, weight_b: Tensor, indices: Tensor, weight_a: Tensor | None, layer_idx: int, scale: float,
    y_offset: int, y_slice_size: int,
) -> Tensor:  # fmt: skip
    return input.copy_(
        with_adapters(input, x, weight_b, indices, weight_a, layer_idx, scale, y_offset, y_slice_size)
    )
