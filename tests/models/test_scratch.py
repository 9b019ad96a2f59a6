"""Memory that operators on a CPU share: one block a type and thread, and none elsewhere."""

from __future__ import annotations

import threading

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swiftlet.models.scratch import scratch

LIKE = torch.zeros(1)


def test_the_next_one_is_the_same_memory():
    first = scratch((100, 7), LIKE)
    second = scratch((3, 50), LIKE)
    assert (first.shape, second.shape) == ((100, 7), (3, 50))
    assert first.is_contiguous() and second.is_contiguous()
    assert first.data_ptr() == second.data_ptr()


def test_a_larger_one_fits():
    scratch((10,), LIKE)
    large = scratch((5000, 33), LIKE).fill_(1)
    assert large.sum() == 5000 * 33


def test_types_and_threads_have_their_own():
    found = []
    thread = threading.Thread(target=lambda: found.append(scratch((9,), LIKE)))
    thread.start()
    thread.join()
    found += [scratch((9,), LIKE), scratch((9,), LIKE.double()), scratch((9,), LIKE.to(torch.bfloat16))]
    assert len({tensor.data_ptr() for tensor in found}) == 4
    assert found[-1].dtype == torch.bfloat16


def test_other_devices_give_tensors_of_their_own():
    like = torch.zeros(1, device="meta")
    one, other = scratch((4, 4), like), scratch((4, 4), like)
    assert one.device.type == "meta"
    assert one is not other


def test_tensors_of_a_trace_are_never_kept():
    with FakeTensorMode():
        fake = scratch((8, 8), torch.zeros(1))
    assert isinstance(fake, FakeTensor)
    assert type(scratch((8, 8), LIKE)) is torch.Tensor
