"""The linear layer that keeps its parameter: the same numbers as torch's, and no hold on released memory."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from swiftlet.parallel.leaf_linear import apply_leaf_linear, leaf_linear


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_equals_torch_in_both_passes(is_frozen, has_bias):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(3, 7, dtype=torch.float64), requires_grad=not is_frozen)
    bias = (
        nn.Parameter(torch.randn(3, dtype=torch.float64), requires_grad=not is_frozen) if has_bias else None
    )
    inputs = [v for v in (weight, bias) if v is not None and v.requires_grad]
    results = []
    for function in (linear, leaf_linear):
        given = x.clone().requires_grad_()
        y = function(given, weight, bias)
        results.append([y, *torch.autograd.grad(y.square().sum(), [given, *inputs])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_backward_pass_reads_the_parameter_as_it_is_then():
    weight = nn.Parameter(torch.ones(2, 3), requires_grad=False)
    x = torch.ones(4, 3, requires_grad=True)
    y = leaf_linear(x, weight, None)
    weight.data = torch.full((2, 3), 5.0)  # released and gathered again
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[10.0] * 3] * 4
    assert y.grad_fn is not None


def test_only_plain_layers_over_the_given_parameters_are_changed():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Bilinear(3, 3, 3))
    assert apply_leaf_linear(model, [model[0].weight]) == 1
    x = torch.randn(2, 3)
    torch.testing.assert_close(model[0](x), linear(x, model[0].weight, model[0].bias))
    assert "forward" in vars(model[0])
    assert "forward" not in vars(model[1])
