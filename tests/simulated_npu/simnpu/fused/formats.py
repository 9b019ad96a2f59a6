"""Types and storage formats. Formats are recorded in the tensor's description; the bytes stay in plain order."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, kernel

FIRST_TYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128, torch.bool,
)  # fmt: skip
# torch's numbers of types; torch_npu adds some from 285 on, of which two are torch's own.
TYPES = dict(enumerate(FIRST_TYPES)) | {
    15: torch.bfloat16,
    **dict.fromkeys((23, 291), torch.float8_e5m2),
    **dict.fromkeys((24, 292), torch.float8_e4m3fn),
}

BASE_FORMATS = (0, 1, 2, 27, 30)  # NCHW, NHWC, ND, NDHWC, NCDHW: the bytes are in plain order on the card too


def need_plain_types(*numbers: int | None) -> None:
    for number in numbers:
        if number is not None and number not in TYPES:
            raise NotSimulated(f"npu::npu_dtype_cast: the simulator has no type number {number}")


@kernel("npu_dtype_cast")
def public_dtype_cast(input: Tensor, dtype: int, input_dtype: int | None) -> Tensor:
    need_plain_types(dtype, input_dtype)
    return input.to(TYPES[dtype], copy=True)


@kernel("npu_dtype_cast_backward")
def public_dtype_cast_backward(
    grad: Tensor, dtype: torch.dtype, grad_dtype: int | None, input_dtype: int | None
) -> Tensor:
    need_plain_types(grad_dtype, input_dtype)
    return grad.to(dtype, copy=True)


@kernel("_npu_dtype_cast")
def dtype_cast(input: Tensor, dtype: torch.dtype) -> Tensor:
    return input.to(dtype, copy=True)


@kernel("_npu_dtype_cast_backward")
def dtype_cast_backward(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.to(dtype, copy=True)


@kernel("npu_dtype_cast_")
def dtype_cast_(input: Tensor, src: Tensor) -> Tensor:
    input.copy_(src)
    return input


@kernel("_npu_format_cast", on_host=False)
def format_cast(input: Tensor, acl_format: int) -> Tensor:
    """torch_npu itself makes the tensor: it knows sizes, and whether internal formats are allowed."""
    if torch.ops.simnpu.get_format(input) == acl_format:
        return input
    result = torch.ops.npu.unsafe_empty_with_format(
        input.shape, dtype=input.dtype, device=input.device, acl_format=acl_format
    )
    result.copy_(input)
    return torch.ops.simnpu.set_format(result, acl_format) if acl_format in BASE_FORMATS else result


# The customized type and the input's choose how a private format lays its bytes out, which stay in plain order here.
@kernel("npu_format_cast", "_npu_format_cast.input_dtype", on_host=False)
def typed_format_cast(
    input: Tensor, acl_format: int, customize_dtype: int | None, input_dtype: int | None
) -> Tensor:
    return format_cast(input, acl_format)


@kernel("_npu_format_cast.aclnn", on_host=False)
def customized_format_cast(input: Tensor, acl_format: int, customize_dtype: int) -> Tensor:
    return format_cast(input, acl_format)


@kernel("npu_format_cast.Tensor", on_host=False)
def format_cast_like(
    input: Tensor, dst: Tensor, customize_dtype: int | None, input_dtype: int | None
) -> Tensor:
    return format_cast(input, torch.ops.simnpu.get_format(dst))


@kernel("npu_format_cast_.acl_format", on_host=False)
def format_cast_(input: Tensor, acl_format: int) -> Tensor:
    return torch.ops.simnpu.set_format(input, torch.ops.simnpu.get_format(format_cast(input, acl_format)))


@kernel("npu_format_cast_", on_host=False)
def format_cast_like_(input: Tensor, src: Tensor) -> Tensor:
    input.copy_(src)
    return torch.ops.simnpu.set_format(input, torch.ops.simnpu.get_format(src))


@kernel("copy_memory_", on_host=False)
def copy_memory_(input: Tensor, src: Tensor, non_blocking: bool) -> Tensor:
    return input.copy_(src, non_blocking=non_blocking)


@kernel("npu_view_copy", on_host=False)
def view_copy(input: Tensor, other: Tensor, non_blocking: bool) -> Tensor:
    return input.copy_(other, non_blocking=non_blocking)


@kernel("npu_transpose", "npu_transpose.out", on_host=False)
def transpose(input: Tensor, perm: list[int], require_contiguous: bool) -> Tensor:
    return input.permute(perm).contiguous()


@kernel("npu_confusion_transpose", on_host=False)
def confusion_transpose(input: Tensor, perm: list[int], shape: list[int], transpose_first: bool) -> Tensor:
    if transpose_first:
        return input.permute(perm).contiguous().view(shape)
    return input.reshape(shape).permute(perm).contiguous()


@kernel("npu_confusion_transpose_backward", on_host=False)
def confusion_transpose_backward(
    grad: Tensor, perm: list[int], shape: list[int], transpose_first: bool
) -> Tensor:
    """`shape` is the input's, `transpose_first` about the way back."""
    back = [perm.index(dim) for dim in range(len(perm))]
    if transpose_first:
        return grad.permute(back).reshape(shape)
    return grad.reshape([shape[dim] for dim in perm]).permute(back).contiguous()


@kernel("npu_broadcast", "npu_broadcast.out", on_host=False)
def broadcast(input: Tensor, size: list[int]) -> Tensor:
    return input.expand(size).contiguous()


@kernel("npu_reshape", "npu_reshape.out", on_host=False)
def reshape(input: Tensor, shape: list[int]) -> Tensor:
    return input.reshape(shape)


@kernel("one_", on_host=False)
def one_(input: Tensor) -> Tensor:
    return input.fill_(1)
