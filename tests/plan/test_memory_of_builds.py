"""Memory of builds and flags that keep other values than the plain step: formula against the trace of that step."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from swiftlet.commands import plan_layers, plan_trace
from swiftlet.commands.model_setup import lora_settings
from swiftlet.commands.plan_flags import setting_of
from swiftlet.commands.plan_layers import look
from swiftlet.commands.planning import Rows, Sized, Subject, geometry_in
from swiftlet.config.args import SftArgs
from swiftlet.config.fields import with_values
from swiftlet.device.kernels import plain_attention
from swiftlet.errors import SwiftletError
from swiftlet.models import counting
from swiftlet.models.geometry import geometry_of_config
from swiftlet.plan import timing
from swiftlet.plan.activations import peak_of_step, saved_per_layer
from swiftlet.plan.cards import host_card, read_cards
from swiftlet.plan.live import LiveBytes
from swiftlet.plan.memory import GIB, estimate, host_bytes
from swiftlet.plan.setting import Setting, num_trained

TINY = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY |= {"intermediate_size": 352, "vocab_size": 2000, "head_dim": 32, "pad_token_id": 0, "eos_token_id": 1}
EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
}
EXPERTS |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16}
LATENT |= {"v_head_dim": 32, "num_key_value_heads": 4, "head_dim": 16}


NOTHING = dict.fromkeys(plan_layers.Layers._fields, 0)


def compared(kind, *, dtype=torch.float32, tokens=512, sizes=(), setting=(), **flags):
    """Return (planned, traced) trained numbers and bytes of a tiny model of this kind."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**{**TINY, **dict(sizes)})
    geometry = geometry_of_config(config.to_dict())
    args = with_values(SftArgs(), **flags)
    lora = lora_settings(args.tuner) if args.tuner.sft_type == "lora" else None
    model = plan_trace.build_empty(config, args.tuner, dtype, lora)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = plan_trace.trace_step(model, args, [tokens // 2] * 2, num_labels=tokens - 2)
    given = {"is_host": True, "keeps_attention": dtype == torch.float32} | dict(setting)
    setting = replace(
        setting_of(args, geometry, 1, dtype.itemsize),
        tokens=tokens,
        labels=tokens - 2,
        longest=tokens // 2,
        **given,
    )
    planned = estimate(geometry, setting)
    needed = planned.needed - planned.compiled  # a trace compiles nothing
    return (num_trained(geometry, setting), trained), (needed, found.resident + found.peak)


def test_capped_logits_have_a_slope_beside_them():
    _, (planned, traced) = compared("gemma2")
    assert planned == pytest.approx(traced, rel=0.03)


def test_the_first_mlp_beside_an_attention_keeps_nothing_where_only_attention_has_adapters():
    _, (planned, traced) = compared("phi")
    assert planned == pytest.approx(traced, rel=0.03)


@pytest.mark.parametrize(("kind", "sizes"), [("deepseek_v2", EXPERTS | LATENT), ("glm4_moe", EXPERTS)])
def test_adapters_everywhere_of_experts_are_those_of_their_joint_matrices(kind, sizes):
    flags = {"lora_target_modules": ("ALL",), "lora_dropout_p": 0.0}  # joint matrices know no dropout
    numbers, (planned, traced) = compared(kind, sizes=sizes, **flags)
    assert numbers[0] == numbers[1]
    assert planned == pytest.approx(traced, rel=0.1)


def test_dense_layers_of_an_expert_model_have_adapters_of_their_own_width():
    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "mlp_only_layers": [0]}
    sizes |= {"shared_expert_intermediate_size": 128}
    names = ("q_proj", "gate_proj", "up_proj", "down_proj")
    numbers, _ = compared("qwen2_moe", sizes=sizes, lora_target_modules=names)
    assert numbers[0] == numbers[1]


def test_one_matrix_for_queries_keys_and_values_has_one_adapter():
    numbers, _ = compared("phi3")
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("sft_type", "dtype"), [("lora", torch.float32), ("full", torch.float32), ("full", torch.bfloat16)]
)
def test_without_fused_operators_more_is_kept(sft_type, dtype):
    _, (ours, _) = compared("qwen3", dtype=dtype, sft_type=sft_type)
    _, (planned, traced) = compared("qwen3", dtype=dtype, sft_type=sft_type, fused_operators="false")
    assert planned > 1.1 * ours
    assert planned == pytest.approx(traced, rel=0.05)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_that_deepspeed_keeps_on_the_host_takes_nothing_of_a_device(stage):
    from swiftlet.models.families import FAMILIES

    geometry = FAMILIES["qwen1half-7b-chat"].geometry
    zero = '{"zero_optimization": {"stage": %d, "offload_optimizer": {"device": "%s"}}}'

    def planned(device):
        args = with_values(SftArgs(), sft_type="full", deepspeed=zero % (stage, device))
        return setting_of(args, geometry, 4, 2)

    here, there = planned("none"), planned("cpu")
    assert here.engine == there.engine == f"zero{stage}"
    spared = estimate(geometry, here).needed - estimate(geometry, there).needed
    assert spared == estimate(geometry, here).optimizer + estimate(geometry, here).gradients
    assert estimate(geometry, there).optimizer == estimate(geometry, there).gradients == 0
    assert host_bytes(geometry, here) == 0
    assert host_bytes(geometry, there) == 4 * 4 * geometry.num_parameters > 100 * GIB
    other = replace(there, engine="fsdp2")  # another way to run the same command has its own optimizer
    assert estimate(geometry, other).optimizer > 0


@pytest.mark.parametrize(
    "flags",
    [
        {"fused_operators": "false", "lora_target_modules": ("ALL",)},
        {"use_dora": True},
        {"use_dora": True, "lora_target_modules": ("ALL",)},
        {"use_dora": True, "lora_target_modules": ("ALL",), "lora_dropout_p": 0.0},
        {"lora_modules_to_save": ("lm_head",)},
        {"lora_modules_to_save": ("down_proj",)},
        {"lora_modules_to_save": ("EMBEDDING",)},
        {"lora_target_modules": ("q_proj", "lm_head")},
        {"lora_target_modules": ("ALL",), "lora_rank": 64},
    ],
    ids=str,
)
def test_what_adapters_of_other_kinds_and_modules_trained_beside_them_keep(flags):
    numbers, (planned, traced) = compared("qwen2", dtype=torch.bfloat16, **flags)
    assert numbers[0] == numbers[1]
    assert planned == pytest.approx(traced, rel=0.05)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "flags",
    [
        {"freeze_parameters_ratio": 0.3},
        {"freeze_parameters_ratio": 0.95},
        {"freeze_parameters": ("model.layers.1", "model.norm")},
        {"freeze_parameters": ("model.layers.0.self_attn", "model.embed_tokens")},
    ],
    ids=str,
)
def test_a_full_run_trains_whole_tensors_and_the_head_only_where_it_is_not_frozen(flags, tied):
    sizes = {"vocab_size": 8000, "tie_word_embeddings": tied}
    numbers, (planned, traced) = compared("llama", sizes=sizes, sft_type="full", **flags)
    assert numbers[0] == pytest.approx(numbers[1], rel=0.002)
    assert planned == pytest.approx(traced, rel=0.08)


@pytest.fixture
def real_tensors(monkeypatch):
    """Let the trace run on real tensors, all of zeros: copies of fake adapters are not made."""

    def fill(model, mode):
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().zero_()

    monkeypatch.setattr(plan_trace, "FakeTensorMode", lambda **_: nullcontext())
    monkeypatch.setattr(plan_trace, "give_fake_tensors", fill)
    monkeypatch.setattr(plan_trace, "LiveBytes", lambda num_labels: LiveBytes())


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_copies_of_adapters_in_a_shorter_type_are_there_twice_for_all_layers_at_once(real_tensors, recompute):
    flags = {"lora_target_modules": ("ALL",), "lora_rank": 128, "gradient_checkpointing": recompute}
    _, (planned, measured) = compared("qwen2", dtype=torch.bfloat16, **flags)
    assert planned == pytest.approx(measured, rel=0.03)


def test_a_frozen_head_beside_trained_layers_needs_no_gradient_of_its_size():
    flags = {"sft_type": "full", "freeze_parameters": ("lm_head",)}
    _, (planned, traced) = compared("qwen2", sizes={"vocab_size": 8000}, **flags)
    assert planned == pytest.approx(traced, rel=0.05)


def test_fsdp2_has_all_adapters_on_each_device():
    from swiftlet.models.families import FAMILIES

    geometry = FAMILIES["qwen1half-7b-chat"].geometry
    alone = estimate(geometry, Setting(itemsize=2, tokens=512, rank=64))
    for engine in ("fsdp2", "fsdp2-offload"):
        sharded = estimate(geometry, Setting(itemsize=2, tokens=512, rank=64, engine=engine, world_size=8))
        assert sharded[1:4] == alone[1:4]  # adapters, gradients, optimizer


def test_attention_of_an_npu_keeps_its_mask_once():
    from swiftlet.models.families import FAMILIES

    geometry = FAMILIES["qwen1half-7b-chat"].geometry._replace(layers=1)
    setting = Setting(itemsize=2, tokens=0, keeps_inputs=True)
    plain = peak_of_step(geometry, replace(setting, keeps_inputs=False))[0]
    assert peak_of_step(geometry, setting)[0] - plain == 2048**2


# The first has no attention before its third layer, so that LoRA's default matrices are only behind that.
KINDS = {
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 2, "vocab_size": 500},
    "lfm2": TINY | {"num_hidden_layers": 8, "block_ff_dim": 352, "head_dim": None},
    "falcon": TINY | {"num_hidden_layers": 4, "head_dim": None},
    "gpt_oss": TINY | {"num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
}
KINDS["gpt_oss"]["sliding_window"] = 128
KINDS["lfm2"]["layer_types"] = ["conv", "conv", "full_attention", *["conv"] * 5]
KINDS = {kind: {k: v for k, v in sizes.items() if v is not None} for kind, sizes in KINDS.items()}


def looked_at(folder, kind, *, longest=384, **flags):
    """Return a subject whose model has dropout, and layers, that no size of the formula tells, and its setting."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**KINDS[kind])
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    args = with_values(SftArgs(), **flags)
    sized = Sized(kind, geometry_in(folder), "", folder)
    rows = Rows(np.array([longest]), np.array([]), 1.0, "")
    subject = Subject(args, sized, rows, host_card(16, None), 1, None, "fp32")
    setting = setting_of(args, sized.geometry, 1, 4)
    return subject, replace(setting, **look(subject, setting)._asdict())


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_layers_that_the_formula_does_not_know_are_looked_at(tmp_path, recompute):
    subject, setting = looked_at(tmp_path, "gpt2")
    traced, planned = plan_trace.compare(subject, setting, 768, recompute)
    assert planned == pytest.approx(traced, rel=0.1)
    without = replace(setting, **NOTHING)
    assert plan_trace.compare(subject, without, 768, recompute)[1] < 0.8 * traced


@pytest.mark.parametrize("recompute", ["false", "true"])
@pytest.mark.parametrize("kind", ["lfm2", "falcon"])
def test_layers_that_keep_less_than_the_formula_are_planned_so(tmp_path, kind, recompute):
    subject, setting = looked_at(tmp_path, kind, lora_dropout_p=0.0)
    traced, planned = plan_trace.compare(subject, setting, 768, recompute)
    assert planned == pytest.approx(traced, rel=0.08)


def test_layers_without_adapters_keep_as_much_where_adapters_are_before_them_and_else_nothing(tmp_path):
    subject, setting = looked_at(tmp_path, "lfm2", lora_dropout_p=0.0)
    assert setting.num_idle == 2
    whole, _ = looked_at(tmp_path, "lfm2", lora_dropout_p=0.0, lora_target_modules=("in_proj", "q_proj"))
    first = replace(setting, **look(whole, replace(setting, **NOTHING))._asdict())
    assert first.num_idle == 0
    kept = [saved_per_layer(subject.sized.geometry, replace(s, tokens=256)) for s in (setting, first)]
    assert kept[0] > 0.8 * kept[1]


def test_a_sample_alone_in_its_pass_has_the_launches_and_its_layer_the_memory_of_one(tmp_path):
    subject, setting = looked_at(tmp_path, "lfm2")
    assert setting.is_alone
    assert not looked_at(tmp_path, "gpt2")[1].is_alone
    geometry, card = subject.sized.geometry, read_cards()["910B3"]
    together = replace(setting, is_alone=False, tokens=4096, longest=512, recompute="true")
    alone = replace(together, is_alone=True)
    assert peak_of_step(geometry, alone)[0] < 0.5 * peak_of_step(geometry, together)[0]
    load = timing.Load(4096, 2000, 8 * 512**2, 8)
    times = [timing.micro_batch(geometry, s, card, load, has_dropout=False) for s in (together, alone)]
    assert times[1].launch == 8 * times[0].launch
    assert timing.evaluation(geometry, alone, card, load) > timing.evaluation(geometry, together, card, load)


@pytest.mark.parametrize(
    "flags",
    [
        {"freeze_parameters": ("model.embed_tokens", "model.layers.0.", "model.layers.1.")},
        {"freeze_parameters_ratio": 0.75},
        {"freeze_parameters_ratio": 0.75, "gradient_checkpointing": "true"},
    ],
    ids=str,
)
def test_frozen_first_layers_of_a_full_run_keep_nothing_but_what_they_are_made_again_from(flags):
    sizes = {"num_hidden_layers": 6, "vocab_size": 500}
    _, (planned, traced) = compared("qwen3", sizes=sizes, sft_type="full", **flags)
    assert planned == pytest.approx(traced, rel=0.03)


def test_the_dropout_of_attention_costs_scores_where_the_operator_of_the_device_has_none(tmp_path):
    subject, setting = looked_at(tmp_path, "gpt2")
    npu = replace(subject, card=replace(subject.card, keeps_inputs=True))
    heads, scores_and_masks = 2, 4 + 4 + 1
    assert setting.more_a_pair >= heads * scores_and_masks
    unseen = replace(setting, **NOTHING)
    assert look(npu, unseen).more_a_pair < 1


@pytest.fixture
def by_definition(monkeypatch):
    """Let the trace run the attention of a card that has no operator for it."""
    kernels = {"attention": lambda *given: plain_attention(*given)}  # noqa: PLW0108 the plain one itself is replaced
    monkeypatch.setattr(plan_trace, "build_causal", partial(plan_trace.build_causal, kernels=kernels))


@pytest.mark.parametrize(("recompute", "dtype"), [("false", torch.float32), ("true", torch.bfloat16)])
def test_the_backward_pass_of_capped_scores_overtakes_that_of_the_mlp(by_definition, recompute, dtype):
    sizes = {"num_attention_heads": 8, "vocab_size": 512}
    card = {"is_host": False, "keeps_attention": False}
    _, (planned, traced) = compared(
        "gemma2", dtype=dtype, tokens=1024, sizes=sizes, setting=card, gradient_checkpointing=recompute
    )
    assert planned == pytest.approx(traced, rel=0.05)


def test_scores_with_sinks_and_windows_are_looked_at_in_samples_as_long_as_those_of_the_run(
    tmp_path, by_definition
):
    subject, setting = looked_at(tmp_path, "gpt_oss", longest=2048, lora_dropout_p=0.0)
    assert setting.more_backward_a_pair > 0
    # recomputed, where the kinds of layers differ most
    traced, planned = plan_trace.compare(subject, setting, 2 * 2048, "true")
    assert 0.98 * traced < planned < 1.13 * traced


def test_layers_that_cannot_be_looked_at_are_planned_by_sizes_alone_and_said(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))
    subject, setting = looked_at(tmp_path, "gpt2")
    plain = replace(setting, **NOTHING)

    def refuse(model, *args, **kwargs):
        raise RuntimeError("data-dependent output")

    monkeypatch.setattr(plan_layers, "build_causal", refuse)
    assert plan_layers.with_layers_of(subject, plain) == plain
    said = "what the layers of gpt2 keep is not seen without weights (RuntimeError: data-dependent output)"
    assert f"{said}: planned by sizes alone, it may need more" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "sizes", "why"),
    [
        ("bert", {"is_decoder": True}, "its layers take no hidden_states"),
        (
            "openai-gpt",
            {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 500},
            "the model names no layers",
        ),
    ],
)
def test_a_model_whose_layers_are_no_decoders_is_said_to_be_so(tmp_path, monkeypatch, kind, sizes, why):
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 500}
    monkeypatch.setitem(KINDS, kind, sizes | (small if kind == "bert" else {}))
    with pytest.raises(plan_trace.NotSeen, match=why):
        looked_at(tmp_path, kind, lora_target_modules=("ALL",))


def test_a_mistake_of_our_own_code_is_not_taken_for_a_layer_that_cannot_be_looked_at(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))
    subject, setting = looked_at(tmp_path, "gpt2")
    plain = replace(setting, **NOTHING)
    monkeypatch.setattr(plan_layers, "num_shown", lambda kinds: 2)  # whose [0] is no more
    with pytest.raises(TypeError, match="not subscriptable"):
        plan_layers.with_layers_of(subject, plain)

    def refuse(*args, **kwargs):
        raise TypeError("unexpected keyword")  # by code that is not the package's

    monkeypatch.setattr(plan_layers, "build_empty", refuse)
    monkeypatch.setattr(plan_layers, "num_shown", plan_trace.num_shown)
    assert plan_layers.with_layers_of(subject, plain) == plain
    assert "(TypeError: unexpected keyword): planned by sizes alone" in capfd.readouterr().err


def test_layers_are_looked_at_once_for_the_same_model_flags_and_code(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))
    subject, setting = looked_at(tmp_path, "gpt2")
    plain = replace(setting, **NOTHING)
    assert plan_layers.with_layers_of(subject, plain) == setting
    looks = []
    seen = plan_layers.Layers(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7, 1, True)
    monkeypatch.setattr(plan_layers, "look", lambda *given: looks.append(given) or seen)
    assert plan_layers.with_layers_of(subject, plain) == setting and not looks
    (kept,) = (tmp_path / "cache" / "layers").iterdir()
    others = {
        "rank": replace(subject, args=with_values(subject.args, lora_rank=16)),
        "type": replace(subject, dtype="bf16"),
        "device": replace(subject, card=replace(subject.card, keeps_inputs=True)),
        "operators": replace(subject, args=with_values(subject.args, fused_operators="false")),
    }
    for number, other in enumerate(others.values(), 1):
        assert plan_layers.with_layers_of(other, plain) == replace(plain, **seen._asdict())
        assert len(looks) == number
    for spoilt in ("", "[1]", "{}", kept.read_text("utf-8").replace("0", '"x"', 1)):
        kept.write_text(spoilt, encoding="utf-8")
        assert plan_layers.with_layers_of(subject, plain) == replace(plain, **seen._asdict())
    assert "cannot be" not in capfd.readouterr().err
    monkeypatch.setenv("SWIFTLET_CACHE", str(kept))
    assert plan_layers.with_layers_of(subject, plain) == replace(plain, **seen._asdict())
    assert "cannot be written: Not a directory; layers are looked at anew each time" in capfd.readouterr().err


def test_adapters_of_such_layers_are_counted(tmp_path):
    subject, setting = looked_at(tmp_path, "gpt2", lora_target_modules=("c_attn",))
    assert num_trained(subject.sized.geometry, setting) == 4 * 8 * (64 + 3 * 64)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [("aaaaaa", (2, 1)), ("dddmmmmmm", (4, 1)), ("lllflllflllf", (4, 4)), ("aabab", (3, 2)), ("a", (1, 1))],
)
def test_as_few_layers_are_traced_as_show_each_kind_and_how_they_come_again(kinds, expected):
    assert plan_trace.num_shown(list(kinds)) == expected


def test_a_model_whose_class_needs_a_missing_package_says_which(tmp_path, monkeypatch):
    def needs_timm(config):
        raise ImportError(
            "The vision part requires the timm library.\nYou can install it: `pip install timm`."
        )

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    monkeypatch.setattr(counting, "build_config", lambda *args, **kwargs: (None, needs_timm))
    with pytest.raises(SwiftletError, match="needs a package that is missing: The vision part") as caught:
        counting.count_parameters(tmp_path)
    assert caught.value.hint == "pip install timm"
