"""What a run that does not fit is told to type: the cheapest change, in words that are right beside those typed."""

import pytest

from swiftlet.commands.steering import propose
from swiftlet.models.families import FAMILIES
from swiftlet.plan.cards import Card, read_cards
from swiftlet.plan.memory import GIB
from swiftlet.plan.setting import NONE, Setting
from swiftlet.plan.strategies import ENGINES, Fed, Job, advise
from swiftlet.plan.timing import Load

LARGEST, LONGEST = 16384, 563


def card(gib: float) -> Card:
    """Return a device with that much memory and nothing in use."""
    return read_cards()["A100-80G"].__class__(
        **{**vars(read_cards()["A100-80G"]), "memory_gib": gib, "idle_gib": 0.0, "context_gib": 0.0}
    )


def proposed(gib, budgets, *, engines=ENGINES, **setting):
    """Return what is proposed for 7B with LoRA on two devices, asked for with the largest budget."""
    wanted = {"itemsize": 2, "tokens": 1, "world_size": 2} | setting
    feed = lambda budget: Fed(budget, [[Load(budget, budget, budget * LONGEST)]])  # noqa: E731
    geometry = FAMILIES["qwen1half-7b-chat"].geometry
    job = Job(geometry, Setting(**wanted), card(gib), 10, feed, engines=engines)
    advice = advise(job, budgets[:1], (NONE,))
    assert advice.way is None
    return propose(job, advice, budgets)


def test_a_smaller_budget_costs_less_than_another_engine():
    hint = proposed(40, [LARGEST, 8192, LONGEST])
    assert hint.startswith("type --micro_batch_tokens ")
    assert proposed(40, [LARGEST]).startswith("type --")


def test_an_engine_of_the_same_flag_is_typed_in_its_place():
    given = {"is_full": True, "engine": "zero2", "world_size": 4}
    hint = proposed(52, [LONGEST], **given, engines=("none", "zero2", "zero3"))
    assert hint.startswith("type --deepspeed default-zero3 ")
    hint = proposed(52, [LONGEST], **given, engines=("none", "zero2", "fsdp2"))
    assert hint.startswith("leave out --deepspeed and type --fsdp full_shard ")


def test_memory_of_the_host_is_named_where_it_is_needed():
    hint = proposed(12, [LONGEST], engines=("none", "fsdp2-offload"))
    weights = 2 * FAMILIES["qwen1half-7b-chat"].geometry.num_parameters / GIB
    assert f"GiB a device and {weights:.0f} of the host's memory by the plan)" in hint


@pytest.mark.parametrize(
    ("is_full", "wanted"), [(True, "or --sft_type lora; "), (False, "or fewer adapters; ")]
)
def test_where_nothing_fits_something_else_is_named(is_full, wanted):
    assert wanted in proposed(2, [LONGEST], is_full=is_full, engines=("none",))
