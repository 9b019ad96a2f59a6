"""What is trained: targets in many architectures, adapters of every kind, frozen parameters, groups, another base."""

import json

import pytest
import torch
from tiny_models import logits, make, save

from swiftlet.errors import CheckpointError, SwiftletError, UsageError
from swiftlet.models.adapter import load_adapter
from swiftlet.models.load import load_model
from swiftlet.models.save import model_bytes, write_model
from swiftlet.models.targets import resolve_saved, resolve_targets
from swiftlet.models.tuner import (
    LoraSettings,
    apply_full,
    apply_lora,
    describe_parameters,
    parameter_groups_lora_plus,
)

CPU = torch.device("cpu")


def load(folder, dtype=torch.float32):
    return load_model(folder, dtype=dtype, device=CPU)


def train_a_little(model):
    """Move every trained parameter, so that each one matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


DEFAULTS = {
    "qwen2": ["k_proj", "q_proj", "v_proj"],
    "llama": ["k_proj", "q_proj", "v_proj"],
    "gemma2": ["k_proj", "q_proj", "v_proj"],
    "phi3": ["qkv_proj"],
    "glm4": ["k_proj", "q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
}


@pytest.mark.parametrize(("kind", "names"), DEFAULTS.items())
def test_default_is_the_projections_of_queries_keys_and_values(kind, names):
    assert resolve_targets(make(kind), ["DEFAULT"]) == names


@pytest.mark.parametrize(
    "name", ["wqkv", "W_pack", "qkv", "Wqkv", "in_proj_qkvz", "q_a_proj", "kv_b_proj", "key"]
)
def test_default_knows_the_names_of_models_with_their_own_code(name):
    model = make("qwen2")
    for layer in model.model.layers:
        old = layer.self_attn
        layer.self_attn = torch.nn.Module()
        setattr(layer.self_attn, name, old.q_proj)
        layer.self_attn.wo = old.o_proj
    assert resolve_targets(model, ["DEFAULT"]) == [name]


@pytest.mark.parametrize("kind", ["qwen2", "phi3", "gpt2", "mixtral", "falcon", "llama4_text"])
def test_all_is_every_linear_layer_but_the_head(kind):
    model = make(kind)
    kinds = ("Linear", "Conv1D", "FalconLinear")
    linear = {n for n, m in model.named_modules() if type(m).__name__ in kinds} - {"lm_head"}
    wrapped = apply_lora(model, LoraSettings(target_modules=("ALL",)))
    adapted = {
        n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if hasattr(m, "lora_A")
    }
    assert adapted == linear


def test_embedding_names_and_mixtures():
    model = make("qwen2")
    assert resolve_targets(model, ["EMBEDDING"]) == ["embed_tokens"]
    assert resolve_targets(model, ["DEFAULT", "up_proj"]) == ["k_proj", "q_proj", "up_proj", "v_proj"]
    assert resolve_targets(model, ["layers.1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]
    assert resolve_saved(model, ["EMBEDDING", "lm_head"]) == ["embed_tokens", "lm_head"]
    assert resolve_saved(model, ["LN"]) == ["input_layernorm", "norm", "post_attention_layernorm"]
    assert resolve_saved(model, ["mlp"]) == ["mlp"]


def test_the_last_norm_alone_is_trained_where_it_alone_is_named():
    wrapped = apply_lora(make("qwen2"), LoraSettings(modules_to_save=("norm",)))
    saved = [n for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" not in n]
    assert saved == ["base_model.model.model.norm.modules_to_save.default.weight"]


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"target_modules": ("q_prj",)}, "q_prj: no layer of Qwen2ForCausalLM", "did you mean q_proj?"),
        ({"target_modules": ("mlp",)}, "mlp: no layer", "choose one of ALL, DEFAULT, EMBEDDING, down_proj"),
        ({"target_modules": ()}, "--lora_target_modules is empty", "DEFAULT"),
        ({"modules_to_save": ("hat",)}, "hat: no module", "EMBEDDING, LN, lm_head"),
        (
            {"target_modules": ("EMBEDDING",), "modules_to_save": ("EMBEDDING",)},
            "embed_tokens cannot",
            "one flag",
        ),
        ({"init_weights": "pisa"}, "--init_lora_weights 'pisa' is not known", "choose one of true"),
        ({"init_weights": "pissa", "use_dora": True}, "--use_dora does not go with", "leave one"),
        ({"init_weights": "orthogonal", "rank": 3}, "needs an even rank, found 3", "--lora_rank"),
    ],
)
def test_mistakes_name_what_exists(settings, message, hint):
    with pytest.raises(UsageError) as caught:
        apply_lora(make("qwen2"), LoraSettings(**settings))
    assert message in caught.value.message and hint in caught.value.hint


def test_default_without_known_names_says_what_there_is():
    model = make("qwen2")
    for layer in model.model.layers:
        layer.self_attn = torch.nn.Module()
    with pytest.raises(UsageError, match="names no projection of queries, keys or values") as caught:
        resolve_targets(model, ["DEFAULT"])
    assert "down_proj, gate_proj, up_proj" in caught.value.hint


def test_quantised_models_are_not_trained():
    model = make("qwen2")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(UsageError, match="a quantised model is for swift infer"):
        apply_lora(model, LoraSettings())


VARIANTS = {
    "plain": {},
    "all": {"target_modules": ("ALL",), "rank": 4},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_weights": "gaussian"},
    "orthogonal": {"init_weights": "orthogonal"},
    "pissa": {"init_weights": "pissa"},
    "pissa_niter": {"init_weights": "pissa_niter_4"},
    "pissa_rslora": {"init_weights": "pissa", "use_rslora": True},
    "olora": {"init_weights": "olora"},
    "bias": {"bias": "all"},
    "embedding": {"target_modules": ("DEFAULT", "EMBEDDING")},
    "saved": {"modules_to_save": ("LN", "lm_head")},
    "saved_embedding": {"modules_to_save": ("EMBEDDING",)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "phi3"])
def test_adapters_start_harmless_and_come_back_from_their_folder(variant, kind, tmp_path):
    if (variant, kind) == ("olora", "gpt2"):
        with pytest.raises(UsageError, match="olora does not go with GPT2LMHeadModel"):
            apply_lora(make(kind), LoraSettings(**VARIANTS[variant]))
        return
    base, folder = tmp_path / "base", tmp_path / "adapter"
    folder.mkdir()
    before = logits(save(base, kind))
    settings = LoraSettings(**VARIANTS[variant])
    wrapped = apply_lora(load(base), settings).eval()
    assert torch.allclose(logits(wrapped), before, atol=2e-4)
    after = logits(train_a_little(wrapped))
    assert not torch.allclose(after, before, atol=1e-2)
    write_model(wrapped, folder, source=base, is_adapter=True)
    frozen = load_adapter(load(base), folder, is_trainable=False).eval()
    assert torch.allclose(logits(frozen), after, atol=2e-4)
    assert not any(p.requires_grad for p in frozen.parameters())
    again = load_adapter(load(base), folder, is_trainable=True).eval()
    assert torch.equal(logits(again), after), "training must go on with the same bits"
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained


def test_any_program_can_use_a_pissa_adapter_on_the_original_base(tmp_path):
    from peft import PeftModel

    base, folder = tmp_path / "base", tmp_path / "adapter"
    folder.mkdir()
    save(base)
    wrapped = train_a_little(apply_lora(load(base), LoraSettings(init_weights="pissa")))
    write_model(wrapped, folder, source=base, is_adapter=True)
    assert torch.allclose(
        logits(PeftModel.from_pretrained(load(base), folder).eval()), logits(wrapped), atol=2e-4
    )
    written = (folder / "adapter_model.safetensors").stat().st_size
    assert 0.9 * written < model_bytes(wrapped, True) < 1.1 * written


def test_adapters_of_a_short_base_are_kept_in_fp32(tmp_path):
    save(tmp_path)
    wrapped = apply_lora(load(tmp_path, torch.bfloat16), LoraSettings())
    assert {p.dtype for p in wrapped.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in wrapped.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_published_number_of_parameters():
    wrapped = apply_lora(make("qwen2"), LoraSettings(rank=8))
    per_layer = 8 * (32 + 32) + 2 * 8 * (32 + 16)
    text = describe_parameters(wrapped)
    assert text.startswith(f"trainable params: {2 * per_layer:,} || all params: ")
    share = 100 * 2 * per_layer / sum(p.numel() for p in wrapped.parameters())
    assert text.endswith(f"|| trainable%: {share:.4f}")


def test_full_trains_everything_or_all_but_what_is_frozen():
    model = make("qwen2", tie_word_embeddings=False)
    total = sum(p.numel() for p in model.parameters())
    assert apply_full(model) == 0
    assert all(p.requires_grad for p in model.parameters())
    frozen = apply_full(model, freeze_parameters=["model.embed_tokens", "model.layers.0"])
    assert frozen == sum(p.numel() for n, p in model.named_parameters() if not p.requires_grad)
    assert not model.model.layers[0].mlp.up_proj.weight.requires_grad
    assert model.model.layers[1].mlp.up_proj.weight.requires_grad
    frozen = apply_full(model, freeze_ratio=0.5)
    assert 0.3 * total < frozen <= 0.5 * total
    assert not model.model.embed_tokens.weight.requires_grad and model.lm_head.weight.requires_grad


def test_frozen_names_must_exist_and_something_must_be_left():
    with pytest.raises(
        UsageError, match="--freeze_parameters model.embed_token_s: no parameter begins so"
    ) as caught:
        apply_full(make("qwen2"), freeze_parameters=["model.embed_token_s"])
    assert "did you mean model.embed_tokens?" in caught.value.hint
    with pytest.raises(UsageError, match="nothing is left to train"):
        apply_full(make("qwen2"), freeze_parameters=["model", "lm_head"])


def test_lora_plus_gives_b_its_own_rate_and_leaves_vectors_undecayed():
    wrapped = apply_lora(make("qwen2"), LoraSettings(use_dora=True, modules_to_save=("LN",)))
    groups = parameter_groups_lora_plus(wrapped, learning_rate=1e-4, ratio=16, weight_decay=0.1)
    names = {id(p): name for name, p in wrapped.named_parameters()}
    rates = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(rates) == {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {(16e-4, 0.1)}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {(1e-4, 0.1)}
    assert {rate for name, rate in rates.items() if "norm" in name or "magnitude" in name} == {(1e-4, 0.0)}


def make_adapter(tmp_path, kind="qwen2", **settings):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    folder.mkdir()
    save(base, kind)
    write_model(apply_lora(load(base), LoraSettings(**settings)), folder, source=base, is_adapter=True)
    return base, folder


def test_another_base_is_refused_by_its_hash_or_its_shapes(tmp_path):
    base, folder = make_adapter(tmp_path)
    save(tmp_path / "same-shapes", seed=5)
    with pytest.raises(CheckpointError, match="was trained on another base model"):
        load_adapter(load(tmp_path / "same-shapes"), folder, is_trainable=False)
    (folder / "adapter_base.json").unlink()
    save(tmp_path / "larger", hidden_size=64)
    with pytest.raises(CheckpointError, match="of another shape: .* is") as caught:
        load_adapter(load(tmp_path / "larger"), folder, is_trainable=False)
    assert "--model_id_or_path" in caught.value.hint
    save(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="6 missing: "):
        load_adapter(load(tmp_path / "deeper"), folder, is_trainable=False)
    save(tmp_path / "other", "gpt2")
    with pytest.raises(CheckpointError, match="does not fit GPT2LMHeadModel"):
        load_adapter(load(tmp_path / "other"), folder, is_trainable=False)


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_adapters_of_other_kinds_and_formats_are_refused(tmp_path):
    base, folder = make_adapter(tmp_path)
    edit(folder, alora_invocation_tokens=[1])
    with pytest.raises(SwiftletError, match=r"uses alora_invocation_tokens=\[1\], which is not known here"):
        load_adapter(load(base), folder, is_trainable=False)
    edit(folder, alora_invocation_tokens=None, target_modules=["nothing"])
    with pytest.raises(CheckpointError, match="does not fit Qwen2ForCausalLM"):
        load_adapter(load(base), folder, is_trainable=False)
    edit(folder, peft_type="IA3")
    with pytest.raises(SwiftletError, match="holds an adapter of type 'IA3'"):
        load_adapter(load(base), folder, is_trainable=False)
    edit(folder, peft_type="LORA")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(SwiftletError, match=r"has only adapter_model.bin, which can run code"):
        load_adapter(load(base), folder, is_trainable=False)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(SwiftletError, match="has no weights"):
        load_adapter(load(base), folder, is_trainable=False)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(SwiftletError, match="has no adapter_config.json"):
        load_adapter(load(base), folder, is_trainable=False)


def test_an_adapter_that_is_cut_off_or_leads_elsewhere_is_refused(tmp_path):
    base, folder = make_adapter(tmp_path)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(SwiftletError, match="it is cut off|its header says"):
        load_adapter(load(base), folder, is_trainable=False)
    weights.unlink()
    (tmp_path / "elsewhere").write_bytes(whole)
    weights.symlink_to("../elsewhere")
    with pytest.raises(SwiftletError, match="is a link that leads out"):
        load_adapter(load(base), folder, is_trainable=False)
