"""Slices, scatters, orders and other small operators under torch_npu's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import kernel


def extreme(input: Tensor, dim: int, keepdim: bool, largest: bool) -> tuple[Tensor, Tensor]:
    values, indices = (torch.max if largest else torch.min)(input, dim, keepdim)
    return values, indices.int()


@kernel("npu_max.dim")
def npu_max(input: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """As torch.max, with int32 indices."""
    return extreme(input, dim, keepdim, True)


@kernel("npu_min.dim")
def npu_min(input: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return extreme(input, dim, keepdim, False)


@kernel("npu_max_backward", "npu_min_backward")
def extreme_backward(grad: Tensor, dim: int, indices: Tensor, sizes: list[int], keepdim: bool) -> Tensor:
    if not keepdim:
        grad, indices = grad.unsqueeze(dim), indices.unsqueeze(dim)
    return grad.new_zeros(sizes).scatter_(dim, indices.long(), grad)


@kernel("npu_one_hot")
def one_hot(input: Tensor, num_classes: int, depth: int, on_value: float, off_value: float) -> Tensor:
    """`num_classes` is the new axis; a class beyond the depth has no entry."""
    hot = (input.unsqueeze(-1) == torch.arange(depth)).movedim(-1, num_classes)
    return torch.where(hot, float(on_value), float(off_value)).float()


@kernel("npu_pad")
def pad(input: Tensor, paddings: list[int]) -> Tensor:
    """Zeros; a pair for each dimension, the first dimension first."""
    pairs = list(zip(paddings[::2], paddings[1::2], strict=True))
    return F.pad(input, [width for pair in reversed(pairs) for width in pair])


@kernel("npu_slice", "npu_slice.out")
def npu_slice(input: Tensor, offsets: list[int], size: list[int]) -> Tensor:
    for dim, (start, length) in enumerate(zip(offsets, size, strict=True)):
        input = input.narrow(dim, start, input.shape[dim] - start if length == -1 else length)
    return input.contiguous()


@kernel("npu_stride_copy", "npu_stride_copy.out")
def stride_copy(input: Tensor, shape: list[int], stride: list[int], storage_offset: int) -> Tensor:
    return input.as_strided(shape, stride, int(storage_offset)).clone(memory_format=torch.contiguous_format)


@kernel("npu_indexing", "npu_indexing.out")
def indexing(
    input: Tensor,
    begin: list[int],
    end: list[int],
    strides: list[int],
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> Tensor:
    """A strided slice; bit i of a mask is about entry i."""
    takes = [i for i in range(len(begin)) if not (ellipsis_mask | new_axis_mask) >> i & 1]
    dim = 0
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        if ellipsis_mask >> i & 1:
            dim = input.dim() - len([later for later in takes if later > i])
        elif new_axis_mask >> i & 1:
            input, dim = input.unsqueeze(dim), dim + 1
        elif shrink_axis_mask >> i & 1:
            input = input.select(dim, first)
        else:
            whole = slice(None if begin_mask >> i & 1 else first, None if end_mask >> i & 1 else last, step)
            chosen = range(*whole.indices(input.shape[dim]))
            input, dim = input.index_select(dim, torch.tensor(chosen, dtype=torch.long)), dim + 1
    return input.contiguous()


@kernel("npu_sort_v2", "npu_sort_v2.out")
def sort_v2(input: Tensor, dim: int, descending: bool) -> Tensor:
    """Values only."""
    return input.sort(dim, descending).values


@kernel("npu_scatter")
def scatter(input: Tensor, indices: Tensor, updates: Tensor, dim: int) -> Tensor:
    """As torch.scatter; indices may lack the dimension."""
    if indices.dim() < input.dim():
        indices, updates = indices.unsqueeze(dim), updates.unsqueeze(dim)
    return input.scatter(dim, indices.long(), updates)


@kernel("scatter_update_")
def scatter_update_(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Row i of updates goes to row i of input, or to row indices[i, 0], from place indices[i] of the axis on."""
    rows = indices.tolist() if indices.dim() == 2 else enumerate(indices.tolist())
    axis %= input.dim()
    for source, (row, place) in zip(updates, rows, strict=True):
        input[row].narrow(axis - 1, place, updates.shape[axis]).copy_(source)
    return input


@kernel("scatter_update")
def scatter_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    return scatter_update_(input.clone(), indices, updates, axis)


@kernel("npu_scatter_nd_update_")
def scatter_nd_update_(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The last dimension of indices is a place in the first dimensions of input."""
    input[tuple(indices.long().unbind(-1))] = updates
    return input


@kernel("npu_scatter_nd_update")
def scatter_nd_update(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return scatter_nd_update_(input.clone(), indices, updates)


@kernel("npu_sign_bits_pack")
def sign_bits_pack(input: Tensor, size: int) -> Tensor:
    """A bit for each element, 1 where it is not negative, the first in the lowest; [size, bytes / size]."""
    bits = F.pad(input >= 0, (0, -input.numel() % 8), value=False)
    places = torch.arange(8, dtype=torch.uint8)
    return (bits.view(-1, 8).to(torch.uint8) << places).sum(-1, dtype=torch.uint8).view(size, -1)


@kernel("npu_sign_bits_unpack")
def sign_bits_unpack(input: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """1 for each bit that is set, -1 for the others; [size, bits / size]."""
    bits = input[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return (bits.to(dtype) * 2 - 1).view(size, -1)


@kernel("npu_stride_add")
def stride_add(input: Tensor, other: Tensor, offset1: int, offset2: int, c1_len: int) -> Tensor:
    """The sum from these places of the second axis on, 16 * c1_len long, of 5-D tensors; zeros beyond the ends."""
    length, total = 16 * int(c1_len), 0
    for x, offset in ((input, int(offset1)), (other, int(offset2))):
        part = x[:, offset : offset + length]
        total = total + F.pad(part, (0, 0, 0, 0, 0, 0, 0, length - part.shape[1]))
    return total


@kernel("npu_gather_sparse_index")
def gather_sparse_index(input: Tensor, index: Tensor) -> Tensor:
    """Rows of a matrix, as an embedding."""
    return input[index.long()]


@kernel("npu_gather_sparse_index_backward")
def gather_sparse_index_backward(grad: Tensor, self_sizes: list[int], index: Tensor) -> Tensor:
    rows = grad.reshape(-1, *self_sizes[1:]).float()
    return torch.zeros(self_sizes).index_add_(0, index.long().flatten(), rows).to(grad.dtype)


@kernel("npu_masked_fill_range")
def masked_fill_range(input: Tensor, start: Tensor, end: Tensor, value: Tensor, axis: int) -> Tensor:
    """Fills ranges [D, N] along an axis, each row of them with its value; of the last axis, one range a row."""
    found, axis = input.clone(), axis % input.dim()
    is_last = axis == input.dim() - 1 and input.dim() > 1
    for filling, starts, ends in zip(value.tolist(), start.tolist(), end.tolist(), strict=False):
        for row, (first, last) in enumerate(zip(starts, ends, strict=True)):
            (found[row] if is_last else found).narrow(axis - is_last, first, max(last - first, 0)).fill_(
                filling
            )
    return found


@kernel("_npu_index_add")
def index_add(input: Tensor, index: Tensor, source: Tensor, alpha: float) -> Tensor:
    return input.index_add(0, index.long(), source, alpha=alpha)


@kernel("_npu_index_add_")
def index_add_(input: Tensor, index: Tensor, source: Tensor, alpha: float) -> Tensor:
    return input.index_add_(0, index.long(), source, alpha=alpha)
