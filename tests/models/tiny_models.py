"""Tiny random models of many architectures, for tests: two layers, grouped query attention, 120 words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 120,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 120, "n_positions": 64},
    "gpt_neox": {"rotary_pct": 0.5},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    # The first layer is dense, and the second has a shared expert beside the others.
    "deepseek_v3": {
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    # A state space layer before a dense block, attention before one of experts.
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "llama4_text": {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48},
    "falcon": {"alibi": False},
    "minimax": {
        "num_local_experts": 4,
        "head_dim": 8,
        "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


def make(kind: str, *, seed: int = 0, **settings: Any) -> Any:
    """Return a random model of this model_type in fp32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = {} if kind == "gpt2" else SIZES
    config = AutoConfig.for_model(kind, **{**sizes, **OWN.get(kind, {}), **settings})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # norms and biases too, so that each one matters
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save(folder: Path, kind: str = "qwen2", **settings: Any) -> Any:
    """Write such a model into a folder and return it."""
    model = make(kind, **settings)
    model.save_pretrained(folder)
    return model


def start_adapters(model: torch.nn.Module, std: float = 0.1) -> None:
    """Give B of each adapter values: at 0 A would get no gradient."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)


def logits(model: Any) -> torch.Tensor:
    """Return what a model says about a fixed prompt."""
    with torch.no_grad():
        return model(torch.tensor([[3, 5, 7, 11, 13, 17]])).logits
