"""What the doctor says of cards: wherever npu-smi is found, and only of cards that a run uses as an error."""

from __future__ import annotations

import pytest
from machines import card_lines, info_text, install, mapping_text

from swiftlet.commands import doctor
from swiftlet.doctor.examine import examine
from swiftlet.doctor.finding import ERROR, NOTE, exit_code
from swiftlet.doctor.scene import Scene


@pytest.fixture
def bare(tmp_path):
    """A machine with an npu-smi that says this, and nothing else of Ascend: no node, no driver's folder."""

    def look(text, **environ):
        known = {"numpy": ["1.26.4"], "torch": ["2.12.0"], "torch-npu": ["2.12.0"]}
        return Scene({**install(tmp_path, text, mapping_text(range(2))), **environ}, tmp_path / "root", known)

    return look


def ids(findings):
    return [finding.id for finding in findings]


def test_an_npu_smi_that_fails_is_said_where_no_device_is_seen(bare):
    failure = "dcmi model initialized failed, because the device is used. ret is -8020\n"
    (finding,) = [one for one in examine(bare(failure)) if one.id.startswith("device")]
    assert finding.id == "device.smi_failed" and finding.severity == ERROR
    assert "in use elsewhere" in finding.cause("en")


def test_an_npu_smi_that_hangs_is_asked_once(tmp_path):
    program = tmp_path / "npu-smi"
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\nexec sleep 60\n")
    program.chmod(0o755)
    scene = Scene({"PATH": f"{tmp_path}:/usr/bin:/bin"}, tmp_path / "root", smi_timeout_s=1.0)
    assert "device.smi_failed" in ids(examine(scene)) and not scene.machine.has_npus
    assert (tmp_path / "asked").read_text().split() == ["asked"]


def test_full_and_critical_cards_are_named_where_no_node_is_seen(bare):
    cards = [card_lines(0, used=64000), card_lines(1, health="Critical")]
    found = [one for one in examine(bare(info_text(cards))) if one.id.startswith("device")]
    assert ids(found) == ["device.full", "device.health"] and exit_code(found) == 1


def test_no_npu_smi_and_no_nodes_is_no_finding(tmp_path):
    assert "device.smi_missing" not in ids(examine(Scene({"PATH": str(tmp_path)}, tmp_path)))


@pytest.mark.parametrize("cut", ["3316 / 65", "| 1"])
def test_a_cut_table_is_a_warning_and_no_card_has_gone(server, cut):
    text = info_text([card_lines(0), card_lines(1)])
    server.environ.update(install(server.root, text[: text.rindex(cut) + len(cut)], mapping_text(range(2))))
    (finding,) = examine(server.scene())
    assert finding.id == "device.smi_partial" and exit_code([finding]) == 10
    assert "the table of npu-smi is incomplete" in finding.cause("en") and "不完整" in finding.cause("zh")


@pytest.mark.parametrize(
    ("processes", "command"),
    [
        ([], "npu-smi info"),
        ([(0, 77, "", 50000)], "npu-smi info"),
        ([(0, 77, "python", 50000), (0, 78, "python", 9000)], "ps -fp 77,78"),
    ],
)
def test_where_all_cards_are_full_no_card_is_advised(server, processes, command):
    server.cards([card_lines(0, used=64000), card_lines(1, used=64000)], processes)
    found = [one for one in examine(server.scene()) if one.id == "device.full"]
    assert [one.command("en") for one in found] == [command, "npu-smi info"]


def test_the_number_of_a_card_on_the_host_is_told_from_the_one_here(server):
    cards = info_text([card_lines(2, used=41110), card_lines(7)])
    server.environ.update(install(server.root, cards, mapping_text([2, 7])))
    server.environ["ASCEND_RT_VISIBLE_DEVICES"] = "7"
    (finding,) = [one for one in examine(server.scene()) if one.id == "visible.value"]
    assert "NPU 7 of npu-smi is device 1 here" in finding.cause("en")
    assert finding.command("en") == "ASCEND_RT_VISIBLE_DEVICES=1"


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (card_lines(0, used=64000), "is full: 64000 of 65536 MB are in use (77 python)"),
        (card_lines(0, used=30000), "is busy: 30000 of 65536 MB are in use (77 python)"),
        (card_lines(0, health="Critical"), "has health Critical"),
        (card_lines(0, health="Warning"), "has health Warning; many warnings do no harm"),
    ],
    ids=("full", "busy", "critical", "warning"),
)
def test_a_card_that_was_not_chosen_is_a_note(server, card, said):
    server.process(77, 1)
    server.cards([card, card_lines(1)], [(0, 77, "python", 60000)])
    assert exit_code(examine(server.scene())) in (1, 10)
    server.environ["ASCEND_RT_VISIBLE_DEVICES"] = "1"
    found = examine(server.scene())
    assert exit_code(found) == 0 and {one.severity for one in found} == {NOTE}
    assert f"NPU 0 (NPU0) {said}; no run started here uses this NPU" in [one.cause("en") for one in found]
    assert all(one.cause("zh").endswith("；在此启动的任务不使用这个 NPU") for one in found)
    assert {one.command("en") for one in found} == {""}
    assert {one["severity"] for one in doctor.report(server.scene(), found, "en")["findings"]} == {NOTE}
    server.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0"
    assert exit_code(examine(server.scene())) in (1, 10)


@pytest.mark.parametrize("text", ["", "5", "0-1"])
def test_where_no_card_is_chosen_every_card_counts(server, text):
    server.cards([card_lines(0, health="Critical"), card_lines(1)])
    server.environ["ASCEND_RT_VISIBLE_DEVICES"] = text
    assert "device.health" in [one.id for one in examine(server.scene()) if one.severity == ERROR]


def test_notes_are_not_called_right(server, capsys):
    server.cards([card_lines(0, health="Critical"), card_lines(1)])
    server.environ["ASCEND_RT_VISIBLE_DEVICES"] = "1"
    doctor.show(examine(server.scene()), "en", doctor.Console(highlight=False, width=200))
    assert capsys.readouterr().out.splitlines() == [
        "note NPU 0 (NPU0) has health Critical; no run started here uses this NPU",
        "nothing is wrong for a run that is started here",
    ]


@pytest.mark.parametrize(("number", "is_said"), [(7, False), (8, True)])
def test_npu_smi_lists_eight_processes_and_there_may_be_more(server, number, is_said):
    processes = [(0, 900 + at, "python", 700) for at in range(number)]
    for _, pid, _, _ in processes:
        server.process(pid, 50)
    server.cards([card_lines(0, used=60000), card_lines(1)], processes)
    found = {one.id: one for one in examine(server.scene())}
    assert ("device.listed" in found) == is_said
    if is_said:
        assert found["device.listed"].severity == NOTE and found["device.listed"].command("en") == ""
        assert "at most 8 processes of a card: there may be more on NPU 0" in found["device.listed"].cause(
            "en"
        )
        assert "最多列出 8 个进程" in found["device.listed"].cause("zh")
