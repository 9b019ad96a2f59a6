"""Attention over two ways through each node on simulated NPUs, against a loop over the nodes."""

from __future__ import annotations

import pytest
import torch
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def plain(q, k1, v1, k2, v2, hidden, scale):
    rows = []
    for i in range(q.shape[2]):
        for k in range(q.shape[3]):
            own = q[:, :, i, k, None]
            keys, values = (a[:, :, i] + b[:, :, :, k] for a, b in ((k1, k2), (v1, v2)))
            scores = (own @ keys.transpose(-1, -2) * scale).masked_fill(hidden[:, :, i], -torch.inf)
            rows.append(scores.softmax(-1) @ values)
    return torch.cat(rows, 2).view(q.shape)


def test_floyd_attention_and_its_gradients(npu):
    """Two nodes i, three k and four j."""
    shapes = ((1, 2, 2, 3, 4), *[(1, 2, 2, 4, 4)] * 2, *[(1, 2, 4, 3, 4)] * 2)
    host = [torch.randn(*shape).requires_grad_() for shape in shapes]
    card = [x.detach().npu().requires_grad_() for x in host]
    hidden = torch.tensor([[False, True, False, False], [False, False, False, True]]).view(1, 1, 2, 1, 4)
    expected = plain(*host, hidden, 0.5)
    maximum, total, found = npu.npu_fused_floyd_attention(*card, atten_mask=hidden.npu(), scale_value=0.5)
    assert (maximum.shape, total.shape) == ((1, 2, 2, 3, 8), (1, 2, 2, 3, 8))
    assert_near(found.detach(), expected.detach(), 1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    for a, b in zip(card, host, strict=True):
        assert_near(a.grad, b.grad, 1e-5)
