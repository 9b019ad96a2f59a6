"""Which way of running a job is chosen: the first that fits, of what recomputes nothing, a part, or all."""

from dataclasses import replace

import pytest

from swiftlet.commands.planning import Sized, Subject
from swiftlet.models.families import FAMILIES
from swiftlet.models.geometry import Geometry, geometry_of_config
from swiftlet.plan.cards import host_card, read_cards
from swiftlet.plan.memory import GIB
from swiftlet.plan.setting import ATTENTION, FULL, MLP, NONE, PARTIAL, Setting
from swiftlet.plan.strategies import Fed, Job, advise, devices_needed, levels_asked, levels_for, way_of
from swiftlet.plan.timing import Load

G = Geometry(1024, 24, 16, 8, 4096, 32000)


def feed(budget):
    return Fed(budget, [[Load(budget, budget, budget**2)]])


def job(**options):
    setting = Setting(itemsize=2, tokens=1, targets=frozenset((*ATTENTION, *MLP)))
    return Job(G, setting, read_cards()["A100-80G"], 10, feed, **options)


def with_room(whole, needed):
    """Return the job on a device that is just large enough for what a way needs."""
    return replace(whole, card=replace(whole.card, memory_gib=1.01 * needed / 0.8 / GIB))


@pytest.mark.parametrize("level", [NONE, PARTIAL, FULL])
def test_less_is_kept_only_when_memory_asks_for_it(level):
    whole, budgets = job(), [8192, 4096]
    needed = way_of(whole, "none", budgets[-1], level).figures.visible
    chosen = advise(with_room(whole, needed), budgets, levels_asked(whole, "AUTO")).way
    assert chosen is not None
    assert chosen.recompute == level
    assert chosen.figures.visible <= 1.01 * needed


def test_what_is_asked_for_is_done():
    assert [levels_asked(job(), level) for level in (NONE, PARTIAL, FULL)] == [(NONE,), (PARTIAL,), (FULL,)]


def test_models_that_are_not_known_well_enough_recompute_all_or_nothing():
    assert levels_for(job(), "fsdp2") == (NONE, PARTIAL, FULL)
    assert levels_for(job(), "zero3") == levels_for(job(has_partial=False), "none") == (NONE, FULL)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    widths = {
        kind: geometry_of_config({**sizes, "model_type": kind, "intermediate_size": 256}).up_width
        for kind in ("qwen2", "phi3", "gemma2", "unheard_of")
    }
    assert widths == {"qwen2": 256, "phi3": 0, "gemma2": 0, "unheard_of": 0}
    named = ("qwen1half-7b", "qwen1half-moe-a2_7b", "mixtral-moe-7b", "phi4", "glm4-9b", "internlm2-7b")
    assert [FAMILIES[name].geometry.up_width for name in named] == [11008, 5632, 0, 0, 0, 0]


@pytest.mark.parametrize(("hidden", "tokens"), [(192, 1024), (512, 1024), (896, 585), (4096, 512)])
def test_wide_layers_keep_a_processor_busy_with_fewer_tokens(hidden, tokens):
    def busy(card):
        sized = Sized("any", G._replace(hidden=hidden), "", None)
        return Subject(None, sized, None, card, 1, None, "fp32").busy_tokens

    assert busy(host_card(16)) == tokens
    assert busy(read_cards()["A100-80G"]) == 8192


def test_no_number_of_devices_is_promised_with_an_engine_that_sft_refuses():
    whole = job()
    small = replace(whole, card=replace(whole.card, memory_gib=1.6))
    assert devices_needed(small, [512]) == 4
    assert devices_needed(replace(small, engines=("none",)), [512]) is None


def test_seconds_of_evaluations_are_none_where_there_are_none():
    way = way_of(replace(job(), num_steps=7), "none", 512, NONE)
    assert way.evaluation_seconds == 0.0
    assert way.seconds == 7 * way.seconds_a_step


def test_evaluations_of_sharded_weights_gather_them_too():
    load = Load(512, 512, 512**2)
    plain = job(evaluation=([load], 3))
    eight = replace(plain, setting=replace(plain.setting, world_size=8))
    plain_s, sharded_s = (way_of(eight, engine, 512, NONE).evaluation_seconds for engine in ("none", "zero3"))
    assert sharded_s > 3 * 7 * G.layers * 0.6e-3 > plain_s
