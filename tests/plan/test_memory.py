"""Memory of a step: monotonic, equal to the trace of the project's own step, and to formulas written by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftlet.commands import plan_trace
from swiftlet.commands.plan_flags import setting_of
from swiftlet.config.args import SftArgs
from swiftlet.config.fields import with_values
from swiftlet.device.kernels import AttentionRules, plain_attention
from swiftlet.models import tuner
from swiftlet.models.cross_entropy import chunk_rows
from swiftlet.models.families import FAMILIES
from swiftlet.models.frozen_head import ROWS, WORDS
from swiftlet.models.geometry import Geometry, geometry_of_config
from swiftlet.plan import timing
from swiftlet.plan.activations import peak_of_step, saved_per_layer
from swiftlet.plan.cards import read_cards
from swiftlet.plan.head import head_chunk
from swiftlet.plan.memory import estimate
from swiftlet.plan.setting import (
    ATTENTION,
    ENDS,
    FULL,
    LEVELS,
    MLP,
    NONE,
    PARTIAL,
    Setting,
    num_adapter_parameters,
    num_trained,
    trains_head,
)
from swiftlet.plan.strategies import ENGINES

SMALL = {
    "qwen2": Geometry(128, 3, 4, 4, 352, 2000, qkv_bias=True),
    "gqa": Geometry(128, 3, 8, 2, 352, 2000, qkv_bias=True),
    "tied": Geometry(128, 3, 4, 2, 352, 2000, tied=True, qkv_bias=True),
    "llama": Geometry(192, 2, 6, 6, 512, 8000),
    "qwen3": Geometry(128, 3, 4, 2, 352, 2000, qk_norm=True, head_dim=32),
    "moe": Geometry(128, 3, 4, 4, 352, 2000, qkv_bias=True)._replace(
        experts=8, expert_intermediate=64, shared_intermediate=128, active_experts=2, has_shared_gate=True
    ),
}


def traced(geometry, tokens, *, is_full, recompute=NONE, dtype=torch.float32, targets=("DEFAULT",)):
    args = with_values(SftArgs(), gradient_checkpointing=recompute)
    lora = None if is_full else tuner.LoraSettings(dropout=0.0, target_modules=targets)
    model = plan_trace.build_empty(plan_trace.config_of(geometry), args.tuner, dtype, lora)
    found = plan_trace.trace_step(model, args, [tokens // 2, tokens - tokens // 2], num_labels=tokens // 2)
    return found.resident + found.peak


# A trace takes seconds: of full training each kind at one level, each level at two kinds.
FULL_LEVELS = dict(zip(SMALL, (NONE, NONE, FULL, FULL, PARTIAL, PARTIAL), strict=True))


@pytest.mark.parametrize(
    ("name", "is_full", "recompute"),
    [
        *((name, False, recompute) for name in SMALL for recompute in LEVELS),
        *((name, True, recompute) for name, recompute in FULL_LEVELS.items()),
    ],
)
def test_the_formula_is_the_trace_of_our_own_step(name, is_full, recompute):
    geometry = SMALL[name]
    setting = Setting(itemsize=4, tokens=256, labels=128, is_full=is_full, recompute=recompute, is_host=True)
    expected = traced(geometry, 256, is_full=is_full, recompute=recompute)
    assert estimate(geometry, setting).needed == pytest.approx(expected, rel=0.02)


TINY = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY |= {"intermediate_size": 352, "vocab_size": 2000, "head_dim": 32, "pad_token_id": 0, "eos_token_id": 1}
# One matrix for gate and up; another activation; no gate, with norms that keep input and output.
OTHER_MLPS = ["phi3", "glm4", "gemma3_text", "starcoder2", "phi"]


@pytest.mark.parametrize("is_full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("kind", OTHER_MLPS)
def test_an_mlp_that_is_not_ours_keeps_what_autograd_keeps(kind, is_full):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**TINY)
    geometry = geometry_of_config(config.to_dict())
    lora = None if is_full else tuner.LoraSettings(dropout=0.0, target_modules=("ALL",))
    model = plan_trace.build_empty(config, SftArgs().tuner, torch.float32, lora)
    found = plan_trace.trace_step(model, SftArgs(), [256, 256], num_labels=256)
    targets = frozenset((*ATTENTION, *MLP))
    setting = Setting(itemsize=4, tokens=512, labels=256, is_full=is_full, targets=targets, is_host=True)
    assert estimate(geometry, setting).needed == pytest.approx(found.resident + found.peak, rel=0.07)


def test_operators_that_keep_what_they_are_given_cost_what_torch_npu_was_seen_to_keep():
    geometry = SMALL["gqa"]
    everywhere = frozenset((*ATTENTION, *MLP))
    setting = Setting(itemsize=2, tokens=100, targets=everywhere)
    more = saved_per_layer(geometry, replace(setting, keeps_inputs=True)) - saved_per_layer(geometry, setting)
    turned, product, sums = 2 * (8 + 2) * 16, 2 * 352, (2 * 8 - 1) * 4 * 8
    assert more == 100 * (turned + product + sums)


def test_names_of_other_builds_mean_the_matrices_that_they_stand_for():
    def adapters(geometry, *names):
        args = with_values(SftArgs(), lora_target_modules=names)
        return num_adapter_parameters(geometry, setting_of(args, geometry, 1, 4))

    geometry = SMALL["qwen2"]
    assert adapters(geometry, "qkv_proj") == adapters(geometry, "DEFAULT") > 0
    assert adapters(geometry, "layers.0.mlp.gate_up_proj") == adapters(geometry, "gate_proj", "up_proj")
    plain = geometry._replace(is_gated=False)
    assert adapters(plain, "fc1", "fc2") == adapters(plain, "up_proj", "down_proj")
    assert adapters(plain, "ALL") == adapters(geometry, "ALL") - 8 * (128 + 352) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capped_scores_are_planned_as_their_attention_keeps_them(dtype):
    geometry = FAMILIES["gemma2-2b"].geometry._replace(hidden=64, heads=4, kv_heads=2, head_dim=16)
    query, key = (torch.randn(heads, 256, 16, dtype=dtype, requires_grad=True) for heads in (4, 2))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is given twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plain_attention(query, key, key, [0, 128, 256], AttentionRules(1.0, softcap=50.0))
    setting = Setting(itemsize=dtype.itemsize, tokens=256, longest=128)
    others = replace(setting, is_host=True)  # whose attention keeps no scores
    planned = saved_per_layer(geometry, setting) - saved_per_layer(geometry, others)
    assert planned == pytest.approx(sum(size for size, _ in kept.values()), rel=0.07)


@pytest.mark.parametrize(("name", "recompute"), [("gqa", NONE), *(("moe", level) for level in LEVELS)])
def test_adapters_everywhere_agree_too(name, recompute):
    targets = (*ATTENTION, *MLP)
    setting = Setting(
        itemsize=4, tokens=256, labels=128, targets=frozenset(targets), recompute=recompute, is_host=True
    )
    expected = traced(SMALL[name], 256, is_full=False, recompute=recompute, targets=targets)
    assert estimate(SMALL[name], setting).needed == pytest.approx(expected, rel=0.02)


def test_trained_norms_agree_too():
    settings = tuner.LoraSettings(dropout=0.0, target_modules=("DEFAULT",), modules_to_save=("LN",))
    geometry = SMALL["llama"]
    model = plan_trace.build_empty(plan_trace.config_of(geometry), SftArgs().tuner, torch.float32, settings)
    found = plan_trace.trace_step(model, SftArgs(), [128, 128], num_labels=128)
    args = with_values(SftArgs(), lora_modules_to_save=("LN",))
    setting = replace(setting_of(args, geometry, 1, 4), tokens=256, labels=128, is_host=True)
    assert setting.trains_norms and not setting.keeps_normed
    assert estimate(geometry, setting).needed == pytest.approx(found.resident + found.peak, rel=0.01)


def test_parts_follow_from_the_sizes_by_hand():
    geometry = FAMILIES["qwen1half-7b-chat"].geometry
    setting = Setting(itemsize=2, tokens=2048)
    memory = estimate(geometry, setting)
    adapters = 32 * 3 * 8 * (4096 + 4096)
    assert num_adapter_parameters(geometry, setting) == adapters == 6_291_456
    assert memory.weights == 2 * 7_721_324_544
    assert (memory.adapters, memory.gradients, memory.optimizer) == (4 * adapters, 4 * adapters, 8 * adapters)
    # Saved a layer: 2 H of norms, H normalised, q, k, v, the attention's output, gate and up, three reduced ranks.
    by_hand = 32 * 2048 * 2 * (2 * 4096 + 4096 + 3 * 4096 + 4096 + 2 * 11008 + 24)
    by_hand += 3 * 2048 * 2 * 11008  # what the last MLP's backward pass makes
    assert memory.activations == pytest.approx(by_hand, rel=0.02)
    full = estimate(geometry, replace(setting, is_full=True))
    assert full.gradients + full.optimizer == 3 * memory.weights


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("labels", [20, 700, 5000])
def test_a_chunk_of_logits_is_never_larger_than_planned(device, labels):
    geometry = FAMILIES["qwen1half-7b-chat"].geometry
    setting = Setting(itemsize=2, tokens=labels, is_host=device == "cpu", is_full=True)
    real = chunk_rows(labels, geometry.vocab, 4, device)
    rows, words = head_chunk(geometry, setting)
    assert words == geometry.vocab
    assert real <= rows <= 2 * real
    frozen = head_chunk(geometry, replace(setting, is_full=False))
    assert frozen == ((min(labels, ROWS), WORDS) if device == "cpu" else (rows, words))


def test_sharding_engines_hold_what_they_were_measured_to_hold():
    geometry = FAMILIES["qwen1half-7b-chat"].geometry
    setting = Setting(itemsize=2, tokens=512, is_full=True, world_size=4)
    total, head = geometry.num_parameters, 151936 * 4096
    layer = (total - 2 * head - 4096) / 32
    plain = estimate(geometry, setting)
    zero2 = estimate(geometry, replace(setting, engine="zero2"))
    assert zero2.optimizer == 4 * 3 * total / 4  # two moments and a copy, in fp32
    assert zero2.buckets == 2 * 2 * 2e8
    assert zero2.logits == max(0, plain.logits - zero2.buckets)
    zero3 = estimate(geometry, replace(setting, engine="zero3"))
    assert zero3.gathered == pytest.approx(2 * (1e9 + 2 * layer))
    fsdp2 = estimate(geometry, replace(setting, engine="fsdp2"))
    assert fsdp2.weights == 4 * total / 4  # what is trained is kept in fp32
    assert fsdp2.gathered == pytest.approx(2 * (head + 2 * layer))
    short = estimate(geometry, replace(setting, engine="fsdp2", tokens=16, is_full=False))
    assert short.gathered + short.activations + short.logits == pytest.approx(
        3 * 2 * head
    )  # as a step begins


SETTINGS = st.builds(
    Setting,
    itemsize=st.sampled_from([2, 4]),
    tokens=st.integers(16, 4096),
    is_full=st.booleans(),
    rank=st.integers(1, 64),
    recompute=st.sampled_from(LEVELS),
    engine=st.sampled_from(["none", "zero2", "zero3", "fsdp2", "zero3-offload", "fsdp2-offload"]),
    world_size=st.integers(1, 16),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SMALL)), SETTINGS)
def test_more_of_anything_never_needs_less(name, setting):
    geometry = SMALL[name]
    needed = estimate(geometry, setting).needed
    assert estimate(geometry, replace(setting, tokens=2 * setting.tokens)).needed >= needed
    assert estimate(geometry, replace(setting, rank=setting.rank + 8)).needed >= needed
    assert estimate(geometry._replace(layers=geometry.layers + 1), setting).needed >= needed
    everywhere = replace(setting, targets=frozenset((*ATTENTION, *MLP, *ENDS)))
    assert estimate(geometry, everywhere).needed >= needed
    assert all(part >= 0 for part in estimate(geometry, setting))
    if setting.engine == "zero2" and not setting.is_full:  # its buckets are there once, however many devices
        more = estimate(geometry, replace(setting, world_size=2 * setting.world_size))
        assert more.needed <= needed
    if setting.engine in ("zero3", "fsdp2") and setting.world_size > 1:
        fewer = estimate(geometry, replace(setting, world_size=1))
        assert estimate(geometry, setting).weights <= fewer.weights


def test_a_sharded_full_run_updates_as_many_bytes_as_it_keeps():
    card, long = read_cards()["910B3"], {"itemsize": 4, "tokens": 256, "is_full": True, "world_size": 4}
    fp32, bf16 = (Setting(**{**long, "itemsize": size, "engine": "fsdp2"}) for size in (4, 2))
    assert (
        timing.update(SMALL["llama"], bf16, card).moving == timing.update(SMALL["llama"], fp32, card).moving
    )


def test_an_update_moves_gradient_weight_and_moments_of_each_trained_number():
    card, setting = read_cards()["910B3"], Setting(itemsize=4, tokens=256, is_full=True)
    number = SMALL["llama"].num_parameters
    for states, values in ((2, 11), (1, 9), (0, 7)):
        moved = timing.update(SMALL["llama"], replace(setting, states=states), card).moving
        assert moved == pytest.approx(values * 4 * number / card.bandwidth_gb_s / 1e9)
    four = timing.update(SMALL["llama"], replace(setting, world_size=4), card).moving
    sharded = timing.update(SMALL["llama"], replace(setting, world_size=4, engine="zero2"), card).moving
    assert four == pytest.approx(11 * 4 * number / card.bandwidth_gb_s / 1e9) == 4 * sharded


def test_what_a_full_run_does_not_train_costs_it_no_gradient_and_no_product():
    geometry, load = SMALL["llama"], timing.Load(256, 200, 256**2)
    whole, half, nothing = (
        Setting(itemsize=4, tokens=256, is_full=True, trained_share=share) for share in (1.0, 0.5, 0.0)
    )
    assert num_trained(geometry, half) == round(geometry.num_parameters / 2)
    assert trains_head(half) and not trains_head(nothing)
    work = [timing.flops_of(geometry, one, load) for one in (whole, half, nothing)]
    ends = geometry.vocab * geometry.hidden * (1 if geometry.tied else 2)
    product = 2 * (geometry.num_parameters - ends) * load.tokens
    assert work[0] - work[1] == pytest.approx(product / 2) == work[1] - work[2]


def test_a_trained_head_needs_most_where_its_weight_gets_the_gradient_of_a_chunk():
    geometry, tokens = SMALL["llama"]._replace(vocab=8192), 64
    setting = Setting(itemsize=4, tokens=tokens, is_full=True, is_host=True, recompute=FULL)
    stream, weight = 4 * tokens * geometry.hidden, 4 * geometry.vocab * geometry.hidden
    logits = 4 * tokens * geometry.vocab
    inputs = (geometry.layers + 1) * stream + 4 * tokens * (2 * geometry.dim + 1) + stream
    # Of the head: hidden states, the labelled ones and their gradient; logits; the gradient, and that of this chunk.
    assert sum(peak_of_step(geometry, setting)) == inputs + 3 * stream + logits + 2 * weight


def test_only_fsdp2_with_adapters_keeps_them_whole():
    lora = Setting(itemsize=2, tokens=256, world_size=4)
    whole = {engine: replace(lora, engine=engine).keeps_adapters_whole for engine in ENGINES}
    assert [engine for engine, keeps in whole.items() if keeps] == ["fsdp2", "fsdp2-offload"]
    assert not replace(lora, engine="fsdp2", is_full=True).keeps_adapters_whole


def test_only_a_processor_keeps_what_it_has_compiled_for_a_shorter_type():
    """fp32 is not compiled, and other devices have their products ready-made."""
    kept = {
        (is_host, itemsize): estimate(
            next(iter(SMALL.values())), Setting(itemsize, 512, is_host=is_host)
        ).compiled
        for is_host in (False, True)
        for itemsize in (2, 4)
    }
    assert [where for where, size in kept.items() if size] == [(True, 2)]
