"""--lora_target_modules ALL where a model has more than linear layers, and names that peft refuses."""

from __future__ import annotations

import pytest
import torch
from tiny_models import logits, make, save

from swiftlet.errors import UsageError
from swiftlet.models.adapter import load_adapter
from swiftlet.models.load import load_model
from swiftlet.models.save import write_model
from swiftlet.models.tuner import LoraSettings, apply_lora, frozen_matrices

CPU = torch.device("cpu")
EXPERTS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
NAMES = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
FROZEN = {
    "qwen2": set(),
    "qwen2_moe": {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in EXPERTS},
    "mamba2": {f"backbone.layers.{layer}.mixer.out_proj.weight" for layer in (0, 1)},
    "mamba": {
        f"backbone.layers.{layer}.mixer.{name}.weight"
        for layer in (0, 1)
        for name in ("x_proj", "dt_proj", "out_proj")
    },
    "jamba": {
        "model.layers.0.mamba.dt_proj.weight",
        "model.layers.1.feed_forward.experts.gate_up_proj",
        "model.layers.1.feed_forward.experts.down_proj",
    },
    # Their names mean the experts to peft.
    "deepseek_v3": {f"model.layers.{part}.{n}" for part in ("0.mlp", "1.mlp.shared_experts") for n in NAMES},
}


@pytest.mark.parametrize("kind", FROZEN)
def test_what_all_leaves_frozen_is_known(kind):
    model = apply_lora(make(kind), LoraSettings(target_modules=("ALL",), dropout=0.0))
    assert set(frozen_matrices(model)) == FROZEN[kind]
    loss = model(torch.tensor([[3, 5, 7, 11]]), use_cache=False).logits.square().sum()
    loss.backward()
    dead = [
        name
        for name, p in model.named_parameters()
        if "lora_B" in name and (p.grad is None or not p.grad.any())
    ]
    assert loss.isfinite()
    assert dead == []


def test_matrices_that_are_trained_whole_are_not_called_frozen():
    settings = LoraSettings(target_modules=("ALL",), modules_to_save=("lm_head", "EMBEDDING"))
    assert frozen_matrices(apply_lora(make("qwen2"), settings)) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.05},
        *({"dropout": 0.0, **more} for more in ({"use_dora": True}, {"init_weights": "pissa"})),
    ],
)
def test_adapters_of_experts_are_plain(settings):
    with pytest.raises(UsageError, match="ALL means the joint matrices of the experts of Deepseek") as caught:
        apply_lora(make("deepseek_v3"), LoraSettings(target_modules=("ALL",), **settings))
    assert "--lora_dropout_p 0" in caught.value.hint


def test_a_name_that_peft_refuses_is_a_mistake_of_the_command_line():
    message = "--lora_target_modules gate_proj does not go with .*: .*without also targeting"
    with pytest.raises(UsageError, match=message) as caught:
        apply_lora(make("deepseek_v3"), LoraSettings(target_modules=("gate_proj",)))
    assert "or other names" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "name"), [("mamba2", "out_proj"), ("mamba", "dt_proj"), ("jamba", "dt_proj")]
)
def test_a_matrix_that_is_read_past_an_adapter_gets_none(kind, name):
    message = f"--lora_target_modules {name}: {kind}ForCausalLM reads the matrix .* past an adapter"
    with pytest.raises(UsageError, match=f"(?i){message}") as caught:
        apply_lora(make(kind), LoraSettings(target_modules=("in_proj", name)))
    names = caught.value.hint.rpartition(": ")[2].split(", ")
    assert "in_proj" in names
    assert name not in names


def test_an_adapter_of_experts_comes_back_from_its_folder(tmp_path, recwarn):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    folder.mkdir()
    save(base, "deepseek_v3")
    model = load_model(base, dtype=torch.float32, device=CPU)
    wrapped = apply_lora(model, LoraSettings(target_modules=("ALL",), dropout=0.0))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    after = logits(wrapped.eval())
    write_model(wrapped, folder, source=base, is_adapter=True)
    again = load_model(base, dtype=torch.float32, device=CPU)
    assert torch.equal(logits(load_adapter(again, folder, is_trainable=True).eval()), after)
    assert not [str(one.message) for one in recwarn if "_pattern keys" in str(one.message)]
