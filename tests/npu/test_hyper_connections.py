"""Hyper-connections of simulated NPUs against their definitions, with gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nearness import assert_near

pytestmark = pytest.mark.npu_sim

TOKENS, STREAMS, WIDTH = 6, 4, 16


def assert_same(plain: Callable, fused: Callable, inputs: list[torch.Tensor]) -> None:
    """Check results and gradients of both."""
    host = [x.clone().requires_grad_() for x in inputs]
    card = [x.npu().requires_grad_() for x in inputs]
    expected, found = plain(*host), fused(*card)
    directions = [torch.randn_like(y) for y in expected]
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b.detach(), 1e-5)
    on_card = torch.autograd.grad(found, card, [g.npu() for g in directions])
    for a, b in zip(on_card, torch.autograd.grad(expected, host, directions), strict=True):
        assert_near(a, b, 1e-4)


@pytest.mark.parametrize("mixes", [True, False])
def test_before_a_layer(npu, mixes):
    n, rows = STREAMS, (STREAMS + 2 if mixes else 2) * STREAMS

    def plain(x, phi, alpha, bias, gamma):
        flat = x.flatten(-2)
        inverse = torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
        logits = ((flat * gamma.flatten()) @ phi.t()) * inverse
        pre = torch.sigmoid(logits[:, :n] * alpha[0] + bias[:n]) + 1e-6
        post = 2 * torch.sigmoid(logits[:, n : 2 * n] * alpha[1] + bias[n : 2 * n])
        results = [(pre[..., None] * x).sum(-2), post]
        if mixes:
            results.append((logits[:, 2 * n :] * alpha[2] + bias[2 * n :]).unflatten(-1, (n, n)))
        return results

    def fused(x, phi, alpha, bias, gamma):
        return npu.npu_mhc_pre(x, phi, alpha, bias, gamma=gamma, out_flag=1)[: 3 if mixes else 2]

    alpha = torch.tensor([0.5, 0.4, 0.3][: 3 if mixes else 2])
    x, phi = torch.randn(TOKENS, n, WIDTH), torch.randn(rows, n * WIDTH) * 0.1
    assert_same(plain, fused, [x, phi, alpha, torch.randn(rows), torch.rand(n, WIDTH) + 0.5])


def test_after_a_layer(npu):
    def plain(x, h_res, h_out, h_post):
        mixed = (h_res[..., None] * x[:, :, None]).sum(1)
        return [h_post[..., None] * h_out[:, None] + mixed]

    x, h_res = torch.randn(TOKENS, STREAMS, WIDTH), torch.randn(TOKENS, STREAMS, STREAMS)
    h_out, h_post = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, STREAMS)
    assert_same(plain, lambda *inputs: [npu.npu_mhc_post(*inputs)], [x, h_res, h_out, h_post])
    kept = npu.npu_mhc_post(x.npu(), None, h_out.npu(), h_post.npu())
    assert_near(kept, x + h_post[..., None] * h_out[:, None], 1e-5)


def test_rows_and_columns_sum_to_one(npu):
    def plain(x):
        y = torch.softmax(x, -1) + 1e-6
        y = y / (y.sum(-2, keepdim=True) + 1e-6)
        for _ in range(19):
            y = y / (y.sum(-1, keepdim=True) + 1e-6)
            y = y / (y.sum(-2, keepdim=True) + 1e-6)
        return [y]

    assert_same(plain, lambda x: [npu.npu_mhc_sinkhorn(x, out_flag=1)[0]], [torch.randn(5, STREAMS, STREAMS)])
    assert npu.npu_mhc_sinkhorn(torch.randn(5, 4, 4).npu())[1:] == (None, None)
