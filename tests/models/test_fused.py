"""Which modules get another forward: those that it computes, whatever the size of their weights."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make

from swiftlet.models.fused import apply_fused


@pytest.mark.parametrize("std", [1e-3, 20.0])
@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", "hardswish"])
def test_an_mlp_with_another_activation_is_left_alone(activation, std):
    model = make("llama", hidden_act=activation)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.gate_proj.weight, std=std)
    assert apply_fused(model)["swiglu"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["silu", "swish"])
def test_every_silu_is_found(activation, dtype):
    assert apply_fused(make("llama", hidden_act=activation).to(dtype))["swiglu"] == 2
