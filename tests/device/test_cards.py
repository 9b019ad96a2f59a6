"""From the answers of npu-smi to chips by their logical numbers, and to the cards that a run should not use."""

from __future__ import annotations

from pathlib import Path

import pytest
from npu_smi_texts import HEAD, card_lines, info_text, mapping_text, topology_text

from swiftlet.device.affinity import as_text
from swiftlet.device.cards import (
    Chip,
    check_cards,
    chips_of,
    findings,
    free_ids,
    is_busy,
    look_at_cards,
)
from swiftlet.device.inventory import find_device
from swiftlet.device.npu_smi import Card


def test_eight_cards_with_their_processors(eight_cards):
    found = look_at_cards(eight_cards)
    chips = chips_of(found)
    assert found.failures == []
    assert [chip.logical for chip in chips] == list(range(8))
    assert as_text(chips[3].cpus) == "96-119"


def test_a_container_keeps_the_cards_numbers(npu_smi):
    cards = [card_lines(4), card_lines(6)]
    matrix = topology_text(["NPU4", "NPU6"], ["0-23", "48-71"])
    chips = chips_of(look_at_cards(npu_smi(info_text(cards), mapping_text([4, 6]), matrix)))
    assert [(chip.logical, chip.card.npu, chip.name, as_text(chip.cpus)) for chip in chips] == [
        (0, 4, "NPU4", "0-23"),
        (1, 6, "NPU6", "48-71"),
    ]


def test_the_matrix_may_count_otherwise_than_the_table(npu_smi):
    matrix = topology_text(["NPU0", "NPU1"], ["0-23", "48-71"])
    chips = chips_of(
        look_at_cards(npu_smi(info_text([card_lines(4), card_lines(6)]), mapping_text([4, 6]), matrix))
    )
    assert [(chip.name, as_text(chip.cpus)) for chip in chips] == [("NPU0", "0-23"), ("NPU1", "48-71")]


def test_logical_ids_of_the_list_win_over_the_order_of_the_table(npu_smi):
    cards = [card_lines(4), card_lines(6)]
    chips = chips_of(look_at_cards(npu_smi(info_text(cards), mapping_text([6, 4]))))
    assert [chip.card.npu for chip in chips] == [6, 4]


def test_chips_with_physical_ids_find_their_row(npu_smi):
    text = HEAD.replace("Chip       ", "Chip  Phy-ID")
    for npu, chip, phy in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)):
        text += f"| {npu}     Ascend910  | OK  | 180.0   36   0    / 0  |\n"
        text += f"| {chip}     {phy}     | 0000:9{phy}:00.0  | 0   0    / 0    3200 / 65536  |\n"
    matrix = topology_text([f"Phy-ID{number}" for number in range(4)], ["0-3", "4-7", "8-11", "12-15"])
    chips = chips_of(look_at_cards(npu_smi(text, "", matrix)))
    assert [(chip.logical, chip.name, chip.cpus[0]) for chip in chips] == [
        (0, "Phy-ID0", 0),
        (1, "Phy-ID1", 4),
        (2, "Phy-ID2", 8),
        (3, "Phy-ID3", 12),
    ]


def test_two_chips_of_a_card_are_told_apart_where_there_is_no_matrix(npu_smi):
    text = HEAD
    for chip, health in ((0, "OK"), (1, "Alarm")):
        text += f"| 8     310P3      | {health}  | NA   37   0    / 0  |\n"
        text += f"| {chip}     {chip}   | 0000:01:00.0  | 0   1390 / 44278  |\n"
    chips = chips_of(look_at_cards(npu_smi(text)))
    assert [chip.name for chip in chips] == ["NPU8", "NPU8 chip 1"]
    (found,) = findings(chips)
    assert "NPU 1 (NPU8 chip 1) has health Alarm" in found.message
    assert "npu-smi info -t health -i 8 -c 1 for" in found.hint


@pytest.mark.parametrize(("health", "shown"), [("OK", "OK"), ("UNKNOWN", "UNKNOWN"), ("-", "not shown")])
def test_a_card_that_the_driver_lists_without_memory_has_gone(npu_smi, health, shown):
    cards = [card_lines(0), card_lines(1, health=health, used=0, total=0)]
    chips = chips_of(look_at_cards(npu_smi(info_text(cards), mapping_text([0, 1]))))
    (found,) = findings(chips)
    assert found.is_serious and "dmesg" in found.hint
    assert found.message == f"NPU 1 (NPU1) has no memory (0 / 0 MB), health {shown}: it has gone"
    assert free_ids(chips) == [0]


def test_no_matrix_is_said_and_the_cards_are_still_known(npu_smi):
    found = look_at_cards(
        npu_smi(info_text([card_lines(0)]), mapping_text([0]), "This device does not support querying topo.")
    )
    assert found.failures == ["npu-smi info -t topo says: This device does not support querying topo."]
    assert len(chips_of(found)) == 1 and chips_of(found)[0].cpus == []


def test_a_refused_matrix_is_said(npu_smi):
    found = look_at_cards(
        npu_smi(info_text([card_lines(0)]), "", topology_text(["NPU0", "NPUx"], ["0-3", ""]))
    )
    assert found.failures == ["npu-smi info -t topo: NPUx is a placeholder of a document"]


def test_without_npu_smi_nothing_is_said(tmp_path):
    assert look_at_cards({"PATH": str(tmp_path)}) is None
    assert check_cards(None, {"PATH": str(tmp_path)}) == []


def test_idle_cards_are_no_finding(eight_cards):
    assert check_cards(None, eight_cards) == []


def test_a_full_card_with_no_work_running_is_busy(npu_smi):
    cards = [card_lines(0), card_lines(1, used=64300), card_lines(2), card_lines(3, used=20000, aicore=45)]
    environ = npu_smi(info_text(cards, [(1, 4711, "python", 60984)]), mapping_text(range(4)))
    full, part = check_cards(None, environ)
    assert full.is_serious
    assert full.message == (
        "NPU 1 (NPU1) is busy: 64300 of 65536 MB are in use by process 4711 python, with no work running on it"
    )
    assert full.hint == "choose free ones: ASCEND_RT_VISIBLE_DEVICES=0,2, or end what holds it: ps -fp 4711"
    assert not part.is_serious and part.message.endswith("20000 of 65536 MB are in use")
    assert check_cards([0, 2], environ) == []
    assert "type npu-smi info" in check_cards([0], npu_smi(info_text([card_lines(0, used=64300)])))[0].hint


@pytest.mark.parametrize("health", ["Warning", "Alarm", "Critical", "UNKNOWN"])
def test_an_unhealthy_card_is_named_with_what_to_do(npu_smi, health):
    environ = npu_smi(info_text([card_lines(4), card_lines(6, health=health)]), mapping_text([4, 6]))
    (found,) = check_cards(None, environ)
    assert found.message == f"NPU 1 (NPU6) has health {health}"
    assert found.hint and (health == "UNKNOWN" or "-i 6" in found.hint)
    assert "hint:" in str(found)


def test_an_error_of_npu_smi_becomes_a_finding(npu_smi):
    (found,) = check_cards(None, npu_smi("dcmi module initialize failed. ret is -8005\n", code=1))
    assert found.message.startswith(
        "npu-smi info says: dcmi module initialize failed. ret is -8005 (the driver gives"
    )
    (found,) = check_cards(None, npu_smi("", code=3))
    assert found.message == "npu-smi info ended with exit code 3"
    environ = npu_smi("")
    Path(environ["PATH"].split(":")[0], "npu-smi").write_text("#!/bin/sh\nkill -SEGV $$\n")
    assert check_cards(None, environ)[0].message == "npu-smi info was ended by signal 11"


def test_npu_smi_lists_eight_processes_and_there_may_be_more(npu_smi):
    def said(number):
        processes = [(0, 900 + at, "python", 700) for at in range(number)]
        (found,) = check_cards(None, npu_smi(info_text([card_lines(0, used=60000)], processes)))
        return found

    assert "process 903 python and at least 4 others, with no work" in said(8).message
    assert "process 903 python and 1 other, with no work" in said(5).message
    assert said(4).message.endswith("process 903 python, with no work running on it")
    assert said(8).hint == f"end what holds it: ps -fp {','.join(str(900 + at) for at in range(8))}"


def test_a_cut_table_is_said_before_a_run(npu_smi):
    text = HEAD + card_lines(0) + card_lines(1)
    (found,) = check_cards(None, npu_smi(text[:-40], mapping_text(range(2))))
    assert found.message.startswith("the table of npu-smi is incomplete: there may be more cards")
    assert found.hint == "type npu-smi info" and not found.is_serious


@pytest.mark.parametrize(
    "used, total, is_held",
    [(2703, 8192, False), (1807, 21527, False), (4096, 8192, True), (3400, 21527, True)],
)
def test_a_card_without_hbm_holds_its_own_system(used, total, is_held):
    assert is_busy(Chip(0, Card(mem_mb=(used, total)), "NPU0", [], [])) == is_held
    assert is_busy(Chip(0, Card(mem_mb=(0, 0), hbm_mb=(used, total)), "NPU0", [], [])) == (
        used > 0.15 * total
    )


def test_memory_of_a_card_without_figures_is_unknown():
    assert Card().used_mb is None and Card().total_mb is None


def test_a_plan_is_for_the_card_that_a_run_would_take(npu_smi):
    seen = npu_smi(
        info_text([card_lines(0, total=65536), card_lines(1, total=32768)]), mapping_text(range(2))
    )
    assert find_device("npu", seen).total_gib == 64
    assert find_device("npu", {**seen, "ASCEND_RT_VISIBLE_DEVICES": "1"}).total_gib == 32
    assert find_device("npu", {**seen, "ASCEND_RT_VISIBLE_DEVICES": "7"}).total_gib == 64
