"""Types and formats that cards keep, on simulated NPUs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.npu_sim


def test_doubles_become_floats_on_the_card_with_a_warning():
    code = "import torch; print(torch.ones(2, device='npu').double().dtype)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "torch.float32\n"
    assert "Device do not support double dtype now, dtype cast replace with float" in done.stderr
    x = torch.ones(2, device="npu")
    assert x.to(torch.float64).dtype == torch.float32
    assert x.to("cpu", torch.float64).dtype == torch.float64
    assert torch.ones(2, dtype=torch.float64).npu().dtype == torch.float64


def test_copies_keep_their_order_and_no_other_is_made():
    turned = torch.ones(2, 3, device="npu").t()
    assert turned.half().stride() == turned.cpu().stride() == (1, 3)
    with pytest.raises(RuntimeError, match="Only contiguous_format or preserve_format is supported"):
        torch.ones(1, 2, 3, 4, device="npu").to(memory_format=torch.channels_last)


def test_private_formats_need_to_be_allowed():
    import torch_npu

    x = torch.ones(2, 3, 32, 32, device="npu")
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(x, 2)) == torch_npu.Format.ND
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(x, 29)) == torch_npu.Format.NCHW
    torch.npu.config.allow_internal_format = True
    try:
        assert torch_npu.get_npu_format(torch_npu.npu_format_cast(x, 29)) == torch_npu.Format.FRACTAL_NZ
    finally:
        torch.npu.config.allow_internal_format = False


def test_a_thread_without_a_card_may_make_a_stream():
    import ctypes
    import threading

    found = []

    def make():
        stream = ctypes.c_void_p(0)
        found.append((int(torch.npu.npurt().npuStreamCreate(ctypes.addressof(stream))), bool(stream.value)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert found == [(0, True)]


@pytest.mark.parametrize("first", [True, False])
def test_gradients_pass_a_transposition_with_a_new_shape(npu, first):
    x = torch.randn(2, 3, 4)
    host, card = x.clone().requires_grad_(), x.npu().requires_grad_()
    perm, shape = (2, 0, 1), (8, 3) if first else (4, 2, 3)
    expected = host.permute(perm).reshape(shape) if first else host.reshape(shape).permute(perm)
    found = npu.npu_confusion_transpose(card, perm, shape, first)
    direction = torch.randn(expected.shape)
    expected.backward(direction)
    found.backward(direction.npu())
    torch.testing.assert_close(card.grad.cpu(), host.grad)
