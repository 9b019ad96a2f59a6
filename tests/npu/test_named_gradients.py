"""Gradients of torch's operators called by torch_npu's names, against those that torch finds on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def assert_gradients(
    name: str, function: Callable, leaves: list[torch.Tensor], call: Callable, wanted: list[int] | None = None
) -> None:
    """The named operator, called with the upstream gradient and the inputs on the card, gives torch's gradients."""
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = function(*leaves)
    upstream = torch.randn_like(out)
    expected = torch.autograd.grad(out, leaves, upstream)
    found = call(getattr(torch.ops.npu, name), upstream.npu(), *(leaf.detach().npu() for leaf in leaves))
    found = [found] if isinstance(found, torch.Tensor) else list(found)
    for number, grad in zip(wanted or range(len(found)), found, strict=True):
        assert_near(grad, expected[number])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses(reduction):
    number = ("none", "mean", "sum").index(reduction)
    x, y, weight = torch.randn(3, 4), torch.rand(3, 4), torch.rand(4)
    assert_gradients(
        "l1_loss_backward",
        lambda a: F.l1_loss(a, y, reduction=reduction),
        [x],
        lambda operator, grad, a: operator(grad, a, y.npu(), number),
    )
    for name, wanted in (("kl_div_backward", [0]), ("kl_div_target_backward", [1])):
        assert_gradients(
            name,
            lambda a, b: F.kl_div(a, b, reduction=reduction, log_target=True),
            [x.clone(), y.clone()],
            lambda operator, grad, a, b: operator(grad, a, b, number, log_target=True),
            wanted,
        )
    assert_gradients(
        "npu_binary_cross_entropy_with_logits_backward",
        lambda a: F.binary_cross_entropy_with_logits(a, y, pos_weight=weight, reduction=reduction),
        [x.clone()],
        lambda operator, grad, a: operator(grad, a, y.npu(), None, weight.npu(), number),
    )


def test_rearranged_values():
    x, index = torch.randn(3, 4), torch.randint(0, 3, (5, 4))
    assert_gradients(
        "npu_gather_backward",
        lambda a: a.gather(0, index),
        [x],
        lambda operator, grad, a: operator(grad, a.shape, 0, index.npu(), False),
    )
    assert_gradients(
        "npu_renorm_backward",
        lambda a: a.renorm(2, 0, 1.0),
        [x.clone()],
        lambda operator, grad, a: operator(grad, a, 2, 0, 1.0),
    )
    for repeats, kind in ((2, "int"), (torch.tensor([1, 0, 3]), "tensor")):
        on_card = repeats if isinstance(repeats, int) else repeats.npu()
        assert_gradients(
            f"repeat_interleave_backward_{kind}",
            lambda a, repeats=repeats: a.repeat_interleave(repeats, 0),
            [x.clone()],
            lambda operator, grad, a, on_card=on_card: operator(grad, a, on_card, 0),
        )


def test_spectra():
    window = torch.hann_window(8)
    assert_gradients(
        "stft_backward",
        lambda a: torch.stft(a, 8, 4, window=window, center=False, return_complex=True),
        [torch.randn(2, 32)],
        lambda operator, grad, a: operator(grad, a, 8, 4, 8, window.npu(), False, None, True),
    )
    assert_gradients(
        "fft_r2c_backward",
        torch.fft.rfft,
        [torch.randn(2, 7)],
        lambda operator, grad, a: operator(grad, [1], 0, True, 7),
    )
    assert_gradients(
        "fft_c2r_backward",
        lambda a: torch.fft.irfft(a, norm="forward"),
        [torch.randn(2, 5, dtype=torch.complex64)],
        lambda operator, grad, a: operator(grad, [1], 0),
    )


def test_convolutions():
    x, weight, bias = torch.randn(2, 3, 7, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    assert_gradients(
        "slow_conv_dilated2d_backward",
        lambda a, b, c: F.conv2d(a, b, c, 1, 1, 2),
        [x, weight, bias],
        lambda operator, grad, a, b, _: operator(grad, a, b, [3, 3], [1, 1], [1, 1], [2, 2], [True] * 3),
    )
    assert_gradients(
        "slow_conv_transpose2d_backward",
        lambda a, b, c: F.conv_transpose2d(a, b, c, 2, 1, 1),
        [torch.randn(2, 4, 5, 5), weight.detach().clone(), torch.randn(3)],
        lambda operator, grad, a, b, _: operator(
            grad, a, b, [3, 3], [2, 2], [1, 1], [1, 1], [1, 1], [True] * 3
        ),
    )
    assert_gradients(
        "_conv_depthwise2d_backward",
        lambda a, b: F.conv2d(a, b, None, 1, 1, 1, groups=3),
        [x.detach().clone(), torch.randn(3, 1, 3, 3)],
        lambda operator, grad, a, b: operator(grad, a, b, [3, 3], [1, 1], [1, 1], [1, 1], [True, True]),
    )


def test_products_twice():
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    grad, of_a, of_b = torch.randn(3, 5, requires_grad=True), torch.randn(3, 4), torch.randn(4, 5)
    once = torch.autograd.grad(a @ b, (a, b), grad, create_graph=True)
    expected = torch.autograd.grad(once, (grad, a, b), (of_a, of_b))
    inputs = [x.detach().npu() for x in (of_a, of_b, grad, a, b)]
    for found, wanted in zip(
        torch.ops.npu.matmul_double_backward(*inputs, [True] * 3), expected, strict=True
    ):
        assert_near(found, wanted)
