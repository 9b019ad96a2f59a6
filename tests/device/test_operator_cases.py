"""What the trust gate tries is what models then ask for: their calls are recorded and found among the cases."""

from __future__ import annotations

import pytest
import torch
import transformers

from swiftlet.commands.operators import cases
from swiftlet.device.kernels import reference_attention, rms_norm, rotary, swiglu
from swiftlet.models.causal import build_causal

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "Qwen3": {"head_dim": 16},
    "Qwen2Moe": {**MOE, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {**MOE, "head_dim": 8},
    "Mistral": {"sliding_window": 4, "head_dim": 8},
    "Mixtral": {"num_local_experts": 4},
    "Gemma": {"head_dim": 8},
    "Gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 16,
        "sliding_window": 4,
        "attn_logit_softcapping": 2.0,
    },
    "Gemma3Text": {"head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 4},
    "Phi3": {},
    "Glm4": {"head_dim": 8},
    "Granite": {"attention_multiplier": 0.3},
    "Olmo2": {},
    "SmolLM3": {},
    "Exaone4": {"sliding_window": 4},
}


def calls_of(family: str) -> tuple[object, set]:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).train()
    found = set()

    def attention(query, key, value, ends, rules):
        heads = query.shape[0], key.shape[0], query.shape[2]
        found.add(("attention", *heads, round(rules.scale, 6), rules.window, rules.softcap))
        return reference_attention(query, key, value, ends, rules)

    def norm(x, weight, eps):
        found.add(("rms_norm", weight.shape[0], eps))
        return rms_norm(x, weight, eps)

    def turn(x, cos, sin):
        found.add(("rotary", x.shape[1], x.shape[3]))
        return rotary(x, cos, sin)

    def gate(one, other):
        found.add(("swiglu", one.shape[-1]))
        return swiglu(one, other)

    kernels = {"attention": attention, "rms_norm": norm, "rotary": turn, "swiglu": gate}
    causal = build_causal(model, kernels=kernels)
    found.clear()
    ids = torch.arange(1, 13)
    causal(ids, torch.arange(12), [0, 12], ids.clone())
    return config, found


def tried(config) -> set:
    found = set()
    for case in cases(config, [12, 30]):
        shapes = case.shapes
        if case.operator == "attention":
            _, rules = case.arguments
            heads = (shapes[0][0], shapes[1][0], shapes[0][2])
            found.add(("attention", *heads, round(rules.scale, 6), rules.window, rules.softcap))
        elif case.operator == "rms_norm":
            found.add(("rms_norm", shapes[1][0], *case.arguments))
        elif case.operator == "rotary":
            found.add(("rotary", shapes[0][1], shapes[0][3]))
        else:
            found.add(("swiglu", shapes[0][-1]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_call_of_a_model_was_tried(family):
    config, asked = calls_of(family)
    assert {name for name, *_ in asked} >= {"attention", "rms_norm"}
    assert asked <= tried(config)


def test_a_configuration_without_heads_has_no_cases_of_attention():
    config = transformers.AutoConfig.for_model("mamba", hidden_size=32)
    assert "attention" not in {case.operator for case in cases(config, [5])}
    config = transformers.AutoConfig.for_model("gpt2", n_embd=32, n_head=4)
    assert "attention" in {case.operator for case in cases(config, [5])}
