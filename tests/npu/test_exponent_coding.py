"""The lossless code for floating point numbers on simulated NPUs."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.npu_sim
COUNT = 32768


def room(x, fixed):
    """pdf, mantissa, fixed and var for an input; var has twice the input's elements."""
    size = x.element_size()
    parts = [torch.zeros(n, dtype=x.dtype).npu() for n in (COUNT * (size - 1) // size, fixed, 12 * COUNT)]
    return torch.zeros(256, dtype=torch.int32).npu(), *parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fixed", [256, 12 * COUNT])
def test_what_is_decoded_is_what_was_encoded(npu, dtype, fixed):
    """A short `fixed` leaves the rest to `var`; each byte with an exponent is counted."""
    x = torch.randn(COUNT).to(dtype)
    pdf, mantissa, *code = npu.npu_hans_encode(x.npu(), True, False, out=room(x, fixed))
    assert pdf.sum() == COUNT
    assert pdf[0x3F] > 0  # numbers from 2 ** -16 on, at most, have this byte on top
    decoded = npu.npu_hans_decode(mantissa, *code, pdf, False, out=torch.zeros(COUNT, dtype=dtype).npu())
    assert torch.equal(decoded.cpu(), x)


def test_room_that_is_too_small_is_refused(npu):
    x = torch.randn(COUNT)
    with pytest.raises(RuntimeError, match="fixed and var have 1024 bytes, they must have 3"):
        npu.npu_hans_encode(x.npu(), True, True, out=room(x, 256))
    with pytest.raises(RuntimeError, match="input has 64 elements"):
        npu.npu_hans_encode(x[:64].npu(), True, False, out=room(x, 256))
