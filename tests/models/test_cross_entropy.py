"""Cross entropy in chunks: value, gradient and correct predictions of the plain computation, for every kind of head."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swiftlet.models import cross_entropy as module
from swiftlet.models import frozen_head
from swiftlet.models.cross_entropy import Head, chunk_rows, linear_cross_entropy

N, H, V = 150, 8, 37


def plain(hidden, targets, head):
    logits = head.module(hidden) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return cross_entropy(logits, targets, reduction="sum"), int((logits.argmax(1) == targets).sum())


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randint(V, (N,), generator=generator)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)  # 32 positions, the least
    monkeypatch.setattr(module, "HOST_ROWS", 1)
    assert chunk_rows(N, V, 4) == 30
    monkeypatch.setattr(frozen_head, "ROWS", 40)
    monkeypatch.setattr(frozen_head, "WORDS", 10)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_loss_and_gradients_are_those_of_all_logits(has_bias, is_trained, scale, softcap, is_wrapped):
    torch.manual_seed(1)
    linear = nn.Linear(H, V, bias=has_bias).requires_grad_(is_trained)
    head = Head(nn.Sequential(linear) if is_wrapped else linear, scale, softcap)
    hidden, targets = data()
    expected, correct = plain(hidden, targets, head)
    (expected * 0.5).backward()
    wanted = [hidden.grad, *(p.grad for p in linear.parameters() if is_trained)]
    hidden.grad = None
    linear.zero_grad(set_to_none=True)
    loss, found = linear_cross_entropy(hidden, targets, head)
    (loss * 0.5).backward()
    got = [hidden.grad, *(p.grad for p in linear.parameters() if is_trained)]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert int(found) == correct


def test_large_logits_neither_overflow_nor_vanish():
    torch.manual_seed(1)
    head = Head(nn.Linear(H, V, bias=False).requires_grad_(False), 1000.0)
    hidden, targets = data()
    loss, _ = linear_cross_entropy(hidden, targets, head)
    loss.backward()
    expected = plain(hidden.detach(), targets, head)[0]
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
    assert torch.isfinite(hidden.grad).all()


def test_in_bf16_the_sum_and_the_softmax_stay_in_fp32():
    torch.manual_seed(1)
    hidden, targets = data(torch.bfloat16)
    low = Head(nn.Linear(H, V, bias=False, dtype=torch.bfloat16).requires_grad_(False))
    loss, _ = linear_cross_entropy(hidden, targets, low)
    loss.backward()
    exact = hidden.detach().float().requires_grad_()
    wide = nn.Linear(H, V, bias=False)
    wide.weight.data = low.module.weight.float()
    expected, _ = plain(exact, targets, Head(wide))
    expected.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=2e-3, atol=0)
    torch.testing.assert_close(hidden.grad.float(), exact.grad, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_without_gradients_no_gradient_is_computed(monkeypatch, is_wrapped):
    monkeypatch.setattr(module._Chunk, "add_grad_weight", None)
    monkeypatch.setattr(torch.autograd, "grad", None)
    linear = nn.Linear(H, V, bias=False)
    hidden, targets = data()
    expected, correct = plain(hidden, targets, Head(linear))
    with torch.no_grad():
        head = Head(nn.Sequential(linear) if is_wrapped else linear)
        loss, found = linear_cross_entropy(hidden.detach(), targets, head)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    assert int(found) == correct


def test_a_frozen_head_makes_no_more_than_a_block_of_logits(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        frozen_head, "empty", lambda shape, like: sizes.append(shape) or like.new_empty(shape)
    )
    hidden, targets = data()
    linear_cross_entropy(hidden, targets, Head(nn.Linear(H, V).requires_grad_(False)))
    assert sizes == [(40 * 10,)]


def test_a_chunk_on_a_cpu_has_rows_enough_for_a_large_product(monkeypatch):
    monkeypatch.undo()
    assert chunk_rows(10_000, 1024, 4) >= 3000
    assert 480 <= chunk_rows(10_000, 8192, 4) <= 512
    assert 480 <= chunk_rows(10_000, 151_936, 4) <= 512
    assert 120 <= chunk_rows(10_000, 151_936, 16) <= 128  # of a head of several modules, with its copies
