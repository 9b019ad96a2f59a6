"""Adapters that peft itself wrote: what they give there, they give here, merged or not."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import logits, save

from swiftlet.errors import CheckpointError, SwiftletError
from swiftlet.models.adapter import load_adapter, plain_fields, quiet_peft
from swiftlet.models.load import load_model
from swiftlet.models.merge import merge_adapter

CPU = torch.device("cpu")


def load(folder):
    return load_model(folder, dtype=torch.float32, device=CPU)


def trained_by_peft(tmp_path, kind="qwen2", **settings):
    """Return the folders of a base and of an adapter, and what the two give."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    if not base.exists():
        save(base, kind)
    with quiet_peft():
        wrapped = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    with quiet_peft():
        wrapped.save_pretrained(folder)
    return base, folder, logits(wrapped.eval())


@pytest.mark.parametrize(("start", "kind"), [("pissa", "qwen2"), ("olora", "qwen2"), ("pissa", "gpt2")])
def test_a_start_that_changed_the_base_changes_it_again(start, kind, tmp_path):
    targets = {"qwen2": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}[kind]
    base, folder, expected = trained_by_peft(
        tmp_path, kind, init_lora_weights=start, target_modules=targets, fan_in_fan_out=kind == "gpt2"
    )
    assert plain_fields(folder) is None, "our own decoder knows no such start"
    adapted = load_adapter(load(base), folder, is_trainable=False).eval()
    assert torch.allclose(logits(adapted), expected, atol=1e-5)
    assert torch.allclose(logits(merge_adapter(adapted)), expected, atol=1e-5)


def test_a_start_that_cannot_be_computed_again_is_refused(tmp_path):
    base, folder, _ = trained_by_peft(tmp_path, init_lora_weights="pissa_niter_4", target_modules=["q_proj"])
    with pytest.raises(
        SwiftletError, match="relative to a base that init_lora_weights='pissa_niter_4'"
    ) as caught:
        load_adapter(load(base), folder, is_trainable=False)
    assert "path_initial_model_for_weight_conversion" in caught.value.hint


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])  # gemma2 ties its head to its embedding
@pytest.mark.parametrize("names", [["embed_tokens", "q_proj"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_adapter_of_the_embedding_or_head_comes_with_their_own_weights(names, kind, tmp_path):
    base, folder, expected = trained_by_peft(tmp_path, kind, target_modules=names)
    adapted = load_adapter(load(base), folder, is_trainable=False).eval()
    assert torch.allclose(logits(adapted), expected, atol=1e-5)
    assert torch.allclose(logits(merge_adapter(adapted)), expected, atol=1e-5)


def test_the_weights_that_come_along_must_fit_the_base(tmp_path):
    _, folder, _ = trained_by_peft(tmp_path, target_modules=["lm_head"])
    save(tmp_path / "other", vocab_size=130)
    with pytest.raises(CheckpointError, match=r"lm_head.base_layer.weight is \(120, 32\), not \(130, 32\)"):
        load_adapter(load(tmp_path / "other"), folder, is_trainable=False)
