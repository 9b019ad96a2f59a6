"""Models that also read images, and layers that only choose: the text is trained, and nothing that it never reaches."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import OWN, SIZES, make
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from swiftlet.errors import SwiftletError, UsageError
from swiftlet.models.adapter import load_adapter
from swiftlet.models.counting import count_parameters
from swiftlet.models.load import build_config, load_model
from swiftlet.models.safety import read_config
from swiftlet.models.save import write_model
from swiftlet.models.targets import resolve_targets
from swiftlet.models.tuner import LoraSettings, apply_full, apply_lora, frozen_matrices

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 5, 7, 11, 13, 17]])
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "patch_size": 14}
LINEAR = {
    f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads")
}
TEXT = {"head_dim": 8}
MADE = {
    "gemma3": (TEXT, EYES | {"num_hidden_layers": 2, "image_size": 28}),
    "qwen3_5": (
        TEXT | LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
        EYES | {"depth": 2, "num_heads": 4, "out_hidden_size": 32},
    ),
    "llama4": (TEXT | {"num_local_experts": 2, "intermediate_size_mlp": 48}, EYES | {"num_hidden_layers": 2}),
}
GEMMA3N = TEXT | {"vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
GEMMA3N |= {"num_kv_shared_layers": 0, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0]}
INDEXED = {**OWN["deepseek_v3"], "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}


def publish(folder, kind):
    """Write a model with its eyes, as such models are published."""
    text, eyes = MADE[kind]
    config = CONFIG_MAPPING[kind](text_config={**SIZES, **text}, vision_config=eyes)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


def answer(model):
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


def backward(model):
    model.zero_grad()
    model(IDS, use_cache=False).logits.square().sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return [name for name, grad in trained.items() if grad is None or not grad.any()]


@pytest.mark.parametrize("kind", MADE)
def test_a_model_that_also_sees_is_trained_on_text(kind, tmp_path):
    publish(tmp_path / "base", kind)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=torch.float32, device=CPU)
    assert type(model) is type(base)
    assert torch.equal(answer(model), answer(base))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(tmp_path / "base") == num_parameters
    apply_full(model)
    assert not [name for name in backward(model) if "embed_tokens" not in name]

    (tmp_path / "full").mkdir()
    write_model(model, tmp_path / "full", source=tmp_path / "base", is_adapter=False)
    assert torch.equal(answer(load_model(tmp_path / "full", dtype=torch.float32, device=CPU)), answer(base))
    assert torch.equal(answer(AutoModelForCausalLM.from_pretrained(tmp_path / "full")), answer(base))
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert config["model_type"] == model.config.model_type


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("target", ["DEFAULT", "ALL", "q_proj"])
def test_no_adapter_is_put_where_no_text_comes(kind, target, tmp_path):
    publish(tmp_path / "base", kind)
    model = load_model(tmp_path / "base", dtype=torch.float32, device=CPU)
    wrapped = apply_lora(model, LoraSettings(target_modules=(target,), dropout=0.0))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert backward(wrapped) == []
    assert any("vision" in name for name in frozen_matrices(wrapped)) is (kind == "gemma3")

    (tmp_path / "adapter").mkdir()
    write_model(wrapped, tmp_path / "adapter", source=tmp_path / "base", is_adapter=True)
    again = load_model(tmp_path / "base", dtype=torch.float32, device=CPU)
    again = load_adapter(again, tmp_path / "adapter", is_trainable=False)
    assert torch.equal(answer(again), answer(wrapped))


def test_a_weight_of_the_text_that_is_left_over_is_still_refused(tmp_path):
    publish(tmp_path, "llama4")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    for name in ("layer_types", "no_rope_layers", "moe_layers"):
        config["text_config"].pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SwiftletError, match="left over: language_model.model.layers.1") as caught:
        load_model(tmp_path, dtype=torch.float32, device=CPU)
    assert "vision" not in str(caught.value)


def test_a_model_whose_text_is_none_on_its_own_is_refused_before_it_is_trained(tmp_path):
    """A full checkpoint of it, or what is merged, would be of a kind that no program loads as a language model."""
    text = SIZES | {"num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    CONFIG_MAPPING["mllama"](text_config=text).save_pretrained(tmp_path)
    with pytest.raises(
        SwiftletError, match=r"a mllama, whose text model alone is a mllama_text_model, which is no"
    ) as caught:
        build_config(tmp_path, read_config(tmp_path), trust_remote_code=False)
    assert "one of text alone" in caught.value.hint


def test_all_leaves_out_a_matrix_that_training_clamps():
    """Gemma 3n clamps correction_coefs on every pass and multiplies by the copy: an adapter would be passed by."""
    model = make("gemma3n_text", **GEMMA3N).train()
    wrapped = apply_lora(model, LoraSettings(target_modules=("ALL",), dropout=0.0))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert backward(wrapped) == []
    assert any("correction_coefs" in name for name in frozen_matrices(wrapped))
    with pytest.raises(UsageError, match="correction_coefs: .* past an adapter"):
        resolve_targets(make("gemma3n_text", **GEMMA3N), ["correction_coefs"])


def test_layers_that_only_choose_tokens_are_not_trained():
    model = make("deepseek_v32", **INDEXED)
    assert not any("indexer" in name or name == "wk" for name in resolve_targets(model, ["ALL", "DEFAULT"]))
    with pytest.raises(
        UsageError, match="wq_b: no loss over text reaches this layer of DeepseekV32"
    ) as caught:
        resolve_targets(model, ["wq_b"])
    assert "q_a_proj" in caught.value.hint
    frozen = apply_full(model)
    indexers = [p for name, p in model.named_parameters() if ".indexer." in name]
    assert frozen == sum(p.numel() for p in indexers) > 0
    assert not any(p.requires_grad for p in indexers)


def test_all_leaves_out_a_layer_that_multiplies_by_groups_of_its_matrix():
    """DeepSeek V4's o_a_proj is derived from torch's layer: with an adapter in its place no pass comes to its end."""
    sizes = {"head_dim": 16, "qk_rope_head_dim": 4, "q_lora_rank": 8, "o_groups": 2, "o_lora_rank": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    index = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4, "sliding_window": 8}
    config = CONFIG_MAPPING["deepseek_v4"](**{**SIZES, **sizes, **experts, **index})
    model = AutoModelForCausalLM.from_config(config)
    apply_lora(model, LoraSettings(target_modules=("ALL",)))
    assert answer(model).isfinite().all()
    assert not any("o_a_proj" in name for name, p in model.named_parameters() if p.requires_grad)
