"""The gradient of a norm from its output alone is that from its input, and the input is not held."""

from __future__ import annotations

import pytest
import torch

from swiftlet.models.norm import keeps_output, rms_norm
from swiftlet.plan.live import LiveBytes

ROWS, SIZE, EPSILON = 50, 192, 1e-6


def reference(x, weight, grad):
    """Return result and gradient of x in double precision, by torch's own operators."""
    x = x.double().requires_grad_()
    result = weight.double() * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)
    result.backward(grad.double())
    return result.detach(), x.grad


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-7, 300.0])
def test_the_gradient_is_that_of_double_precision(size):
    torch.manual_seed(0)
    x, grad = torch.randn(ROWS, SIZE), torch.randn(ROWS, SIZE)
    weight = size * (torch.rand(SIZE) + 0.01) * torch.randn(SIZE).sign()
    assert keeps_output(x, weight)
    expected, expected_grad = reference(x, weight, grad)
    x.requires_grad_()
    result = rms_norm(x, weight, EPSILON)
    result.backward(grad)
    largest = expected_grad.abs().max()
    assert (result - expected).abs().max() < 1e-6 * expected.abs().max()
    assert (x.grad - expected_grad).abs().max() < 1e-6 * largest


@pytest.mark.parametrize("zeros", [1, SIZE])
def test_a_weight_with_zeros_keeps_the_input(zeros):
    torch.manual_seed(0)
    x, grad, weight = torch.randn(ROWS, SIZE), torch.randn(ROWS, SIZE), torch.ones(SIZE)
    weight[:zeros] = 0
    assert not keeps_output(x, weight)
    expected_grad = reference(x, weight, grad)[1]
    x.requires_grad_()
    rms_norm(x, weight, EPSILON).backward(grad)
    torch.testing.assert_close(x.grad.double(), expected_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_outputs_and_trained_weights_are_not_kept(dtype):
    x, weight = torch.randn(ROWS, SIZE), torch.ones(SIZE)
    assert not keeps_output(x.to(dtype), weight)
    assert not keeps_output(x, weight.to(dtype))
    assert not keeps_output(x, weight.requires_grad_())


@pytest.mark.parametrize("zeros", [0, 1])
def test_the_input_is_free_once_it_was_added_to(zeros):
    x = torch.randn(2000, SIZE, requires_grad=True)
    weight = torch.ones(SIZE)
    weight[:zeros] = 0
    with LiveBytes([x, weight]) as live:
        stream = x * 2
        normed = rms_norm(stream, weight, EPSILON)
        del stream
        held = live.live
    assert normed.grad_fn is not None
    assert held - x.nbytes == pytest.approx(x.nbytes * (2 if zeros else 1), rel=0.01)
