"""The lossless code for floating point numbers: bytes with the exponent apart from those of the mantissa.

How a card packs the exponents is not documented; here they stay as they are, in the same tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import check, kernel

FEWEST = 32768  # elements of an input
SPARE = 8448  # bytes of the code that each vector core may take beyond the exponents


def bytes_of(x: Tensor) -> Tensor:
    return x.reshape(-1).view(torch.uint8)


def check_room(input: Tensor, fixed: Tensor, var: Tensor, reshuff: bool) -> None:
    cores = torch.npu.get_device_properties(torch.npu.current_device()).vector_core_num
    needed = input.numel() + input.numel() // 64 + SPARE * cores
    room = fixed.nbytes if reshuff else fixed.nbytes + var.nbytes
    check(room >= needed, f"npu_hans_encode: fixed and var have {room} bytes, they must have {needed}")


@kernel("npu_hans_encode.out")
def hans_encode(input: Tensor, statistic: bool, reshuff: bool, out: list[Tensor]) -> tuple[Tensor, ...]:
    """Fills pdf, mantissa, fixed and var; pdf counts each byte with an exponent where `statistic` asks for that."""
    pdf, mantissa, fixed, var = out
    count, size = input.numel(), input.element_size()
    check(
        count % 64 == 0 and count >= FEWEST,
        f"npu_hans_encode: input has {count} elements, they must be a multiple of 64 and at least {FEWEST}",
    )
    check(
        mantissa.nbytes == count * (size - 1),
        f"npu_hans_encode: mantissa has {mantissa.nbytes} bytes, it must have {count * (size - 1)}",
    )
    check_room(input, fixed, var, reshuff)
    rows = bytes_of(input).view(count, size)
    exponents = rows[:, -1]  # the host's order of bytes: the exponent comes last
    if statistic:
        pdf.copy_(torch.bincount(exponents.int(), minlength=256).view(pdf.shape))
    bytes_of(mantissa).copy_(rows[:, :-1].reshape(-1))
    within = min(count, fixed.nbytes)
    bytes_of(fixed)[:within].copy_(exponents[:within])
    bytes_of(var)[: count - within].copy_(exponents[within:])
    return pdf, mantissa, fixed, var


@kernel("npu_hans_decode.out")
def hans_decode(
    mantissa: Tensor, fixed: Tensor, var: Tensor, pdf: Tensor, reshuff: bool, out: Tensor
) -> Tensor:
    """What was encoded, with the same `reshuff`."""
    count, size = out.numel(), out.element_size()
    exponents = torch.cat((bytes_of(fixed)[:count], bytes_of(var)[: max(count - fixed.nbytes, 0)]))
    parts = (bytes_of(mantissa).view(count, size - 1), exponents[:, None])
    out.copy_(torch.cat(parts, 1).reshape(-1).view(out.dtype).view(out.shape))
    return out
