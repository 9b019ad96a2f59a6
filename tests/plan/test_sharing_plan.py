"""Equal beginnings are computed once unless a step waits for its launches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swiftlet.models.geometry import Geometry
from swiftlet.plan import timing
from swiftlet.plan.cards import host_card, read_cards
from swiftlet.plan.chosen import pays_to_share
from swiftlet.plan.setting import ATTENTION, MLP, Setting
from swiftlet.plan.strategies import Fed, Job, way_of
from swiftlet.plan.timing import Load

SMALL = Geometry(896, 24, 14, 2, 4864, 151936)
LARGE = Geometry(3584, 28, 28, 4, 18944, 151936)


def job(geometry, card, tokens):
    load = Load(tokens, tokens / 2, tokens * 180)
    setting = Setting(itemsize=2, tokens=1, targets=frozenset((*ATTENTION, *MLP)))
    return Job(geometry, setting, card, 10, lambda budget: Fed(tokens, [[load], [load, load]]))


@pytest.mark.parametrize(
    ("geometry", "card", "tokens", "pays"),
    [
        (SMALL, "H200", 5900, False),
        (SMALL, "910B3", 5900, False),
        (LARGE, "H200", 5900, True),
        (LARGE, "910B3", 2700, True),
        (LARGE, "910B3", 200, False),
        (SMALL, "H200", 100_000, True),
    ],
)
def test_a_device_that_waits_for_the_host_shares_nothing(geometry, card, tokens, pays):
    whole = job(geometry, read_cards()[card], tokens)
    assert pays_to_share(whole, way_of(whole, "none", 8192, "false")) is pays


def test_it_is_at_the_point_where_launches_are_hidden():
    whole = job(LARGE, read_cards()["910B3"], 2700)
    way = way_of(whole, "none", 8192, "false")
    times = timing.micro_batch(LARGE, whole.setting, whole.card, whole.feed(0).steps[0][0], has_dropout=False)
    kernels = timing.num_kernels(LARGE, whole.setting) + LARGE.layers * timing.KERNELS_SHARING
    limit = (times.products + times.moving) / kernels * 1e6
    for launch_us, pays in ((0.9 * limit, True), (1.1 * limit, False)):
        card = replace(whole.card, launch_us=launch_us)
        assert pays_to_share(replace(whole, card=card), way) is pays


def test_a_processor_shares_what_it_finds():
    whole = job(SMALL, host_card(16.0), 100)
    assert pays_to_share(whole, way_of(whole, "none", 1024, "false"))
