"""A device's operators are what the model computes with, and a model whose layers differ keeps its own."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import transformers

from swiftlet.device.kernels import reference_attention, rms_norm, rotary, swiglu
from swiftlet.models.causal import build_causal

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
# family, its own settings, and calls of each operator in one forward pass of two layers
FAMILIES = {
    "Qwen2": ({}, {"attention": 2, "rms_norm": 5, "rotary": 4, "swiglu": 2}),
    "Llama": ({}, {"attention": 2, "rms_norm": 5, "rotary": 4, "swiglu": 2}),
    "Mistral": ({"sliding_window": 4}, {"attention": 2, "rms_norm": 5, "rotary": 4, "swiglu": 2}),
    "Qwen3": ({}, {"attention": 2, "rms_norm": 9, "rotary": 4, "swiglu": 2}),
    # a gate with GELU, norms by 1 + weight, scores with a cap
    "Gemma2": (
        {"query_pre_attn_scalar": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0},
        {"attention": 2, "rms_norm": 9, "rotary": 4, "swiglu": 0},
    ),
    # rotates neighbours, and half of each head
    "Glm": ({}, {"attention": 2, "rms_norm": 5, "rotary": 0, "swiglu": 0}),
    # angles for half of each head, experts
    "GptOss": (
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        {"attention": 2, "rms_norm": 5, "rotary": 0, "swiglu": 0},
    ),
    # one matrix for gate and up
    "Phi3": ({}, {"attention": 2, "rms_norm": 5, "rotary": 4, "swiglu": 0}),
}


def model_of(family: str, settings: dict):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_of_a_device_are_called_and_change_nothing(family):
    settings, expected = FAMILIES[family]
    counts = dict.fromkeys(expected, 0)

    def counted(name, operator):
        def call(*args, **kwargs):
            counts[name] += 1
            return operator(*args, **kwargs)

        return call

    plain = {"attention": reference_attention, "rms_norm": rms_norm, "rotary": rotary, "swiglu": swiglu}
    model = model_of(family, settings)
    ours = build_causal(copy.deepcopy(model))
    fused = build_causal(model, kernels={name: counted(name, one) for name, one in plain.items()})
    ids = torch.randint(1, 61, (17,), generator=torch.Generator().manual_seed(1))
    boundaries = [0, 7, 8, 17]
    positions = torch.cat([torch.arange(end - start) for start, end in pairwise(boundaries)])
    labels = ids.clone()
    labels[boundaries[:-1]] = -100
    counts.update(dict.fromkeys(counts, 0))  # the trials while it was built
    batch = (ids, positions, boundaries, labels.roll(-1))
    found, right = fused(*batch), ours(*batch)
    assert counts == expected
    assert found.loss_sum.item() == pytest.approx(right.loss_sum.item(), rel=1e-5)
    found.loss_sum.backward()
    right.loss_sum.backward()
    for (name, one), other in zip(fused.named_parameters(), ours.parameters(), strict=True):
        if other.grad is not None:
            assert torch.allclose(
                one.grad, other.grad, rtol=1e-3, atol=1e-4 * float(other.grad.abs().max())
            ), name


def test_other_models_of_the_same_file_keep_their_rotation():
    module = transformers.models.qwen2.modeling_qwen2
    before = module.apply_rotary_pos_emb
    build_causal(model_of("Qwen2", {}), kernels={"rotary": lambda x, cos, sin: rotary(x, cos, sin)})
    assert module.apply_rotary_pos_emb is before
    assert "forward" not in vars(model_of("Qwen2", {}).model.layers[0].self_attn)
