"""Every layout of npu-smi that is known, written here anew, and its errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from npu_smi_texts import HEAD, card_lines, info_text, mapping_text

from swiftlet.device.npu_smi import Card, Process, is_info, parse_info
from swiftlet.device.npu_smi_lists import (
    explain_error,
    find_error,
    is_mapping,
    npu_of,
    parse_blocks,
    parse_mapping,
    per_chip,
    return_code,
)


def test_eight_cards_and_their_processes():
    text = info_text([card_lines(number) for number in range(8)], [(3, 4711, "python", 20480)])
    info = parse_info(text)
    assert info.npu_smi_version == info.driver_version == "24.1.rc3"
    assert [card.npu for card in info.cards] == list(range(8))
    expected = Card(7, 0, "910B3", "OK", 90.1, 40.0, "0000:42:00.0", 0.0, (0, 0), (3316, 65536))
    assert info.cards[7] == expected
    assert info.cards[7].used_mb == 3316 and info.cards[7].total_mb == 65536
    assert info.processes == [Process(3, 0, 4711, "python", 20480)]
    assert info.process_table and info.process_memory_unit == "MB" and not info.is_partial


def test_no_space_before_the_slash_from_10000_mb_on():
    text = info_text([card_lines(0, used=64321)])
    assert "64321/ 65536" in text
    assert parse_info(text).cards[0].hbm_mb == (64321, 65536)


@pytest.mark.parametrize("health", ["Warning", "Alarm", "Critical", "UNKNOWN"])
def test_every_health(health):
    assert parse_info(info_text([card_lines(0, health=health)])).cards[0].health == health


def test_two_chips_a_card_with_physical_ids():
    text = HEAD.replace("Chip       ", "Chip  Phy-ID")
    text += (
        "| 5     Ascend910           | OK            | 182.0       36                0    / 0             |\n"
    )
    text += (
        "| 0     10                  | 0000:9D:00.0  | 17          0    / 0          52553/ 65536         |\n"
    )
    text += (
        "+------------------------------------------------------------------------------------------------+\n"
    )
    text += (
        "| 5     Ascend910           | OK            | -           35                0    / 0             |\n"
    )
    text += (
        "| 1     11                  | 0000:9F:00.0  | 3           0    / 0          3200 / 65536         |\n"
    )
    first, second = parse_info(text).cards
    assert (first.npu, first.chip, first.phy_id, first.power_w) == (5, 0, 10, 182.0)
    assert (second.npu, second.chip, second.phy_id, second.power_w) == (5, 1, 11, None)


def test_the_four_columns_of_the_950():
    text = """
| npu-smi 25.9.1                          Version: 25.9.1                                         |
| NPU ID | Name             | Health        | Power(W)    Temp(C)           Hugepages-Usage(page) |
|        |                  | Bus-Id        | NPU Util(%) Memory-Usage(MB)  HBM-Usage(MB)         |
| 3      | Ascend950        | Alarm         | 204.4       56                0     / 0             |
|        |                  | NA            | 12          0    / 0          4439  / 86016         |
| NPU ID                    | Process id    | Process name             | Process memory(MB)       |
| 3                         | 991           | python3                  | 1200                     |
| No running processes found in NPU 4                                                             |
"""
    info = parse_info(text)
    assert info.cards == [Card(3, None, "Ascend950", "Alarm", 204.4, 56.0, None, 12.0, (0, 0), (4439, 86016))]
    assert info.processes == [Process(3, None, 991, "python3", 1200)]
    assert info.idle_npus == [4]


def test_a_column_after_the_memory_of_a_process_is_not_the_memory():
    info = parse_info(
        """
| NPU     Chip              | Process id    | Process name       | Process memory(MB)    | Process id in container |
+===========================+===============+======================================================================+
| 0       1                 | 880211        |                    | 17792                 | 6983                    |
"""
    )
    assert info.processes == [Process(0, 1, 880211, "", 17792)]


def test_an_inference_card_has_ddr_only():
    text = """
   | npu-smi 23.0.0                   Version:23.0.1                                          |
   | NPU     Name      | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
   | Chip    Device    | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
   | 64      310P3     | OK              | NA           47                0    / 0              |
   | 0       2         | NA              | 5            1807 / 21527                            |
"""
    info = parse_info(text)
    assert (info.npu_smi_version, info.driver_version) == ("23.0.0", "23.0.1")
    card = info.cards[0]
    assert (card.npu, card.device, card.bus_id, card.hbm_mb, card.power_w) == (64, 2, None, None, None)
    assert (card.used_mb, card.total_mb) == (1807, 21527)


def test_a_table_that_begins_in_the_middle_says_so():
    second_line = card_lines(3).splitlines()[1]
    info = parse_info(second_line + "\n" + card_lines(4))
    assert info.is_partial
    assert [card.npu for card in info.cards] == [None, 4]
    assert parse_info(HEAD + card_lines(0) + card_lines(1).splitlines()[0]).is_partial
    assert parse_info(info_text([card_lines(0), "...\n", card_lines(7)])).is_partial


def test_a_table_cut_anywhere_never_gives_a_figure_that_the_whole_one_does_not_have():
    text = info_text([card_lines(0), card_lines(1, used=64000)], [(1, 4711, "python", 20480)])
    whole = parse_info(text)
    for end in range(len(text)):
        cut = parse_info(text[:end])
        assert cut.cards == whole.cards[: len(cut.cards)], text[:end]
        assert cut.processes == whole.processes[: len(cut.processes)], text[:end]


@pytest.mark.parametrize("end", ["3316 / 65", "3316 / 65536         ", "| 0000:C2:00.0  |", "0000:C2"])
def test_a_table_cut_inside_a_row_says_so(end):
    text = HEAD + card_lines(0) + card_lines(1)
    info = parse_info(text[: text.rindex(end) + len(end)])
    assert info.is_partial and [card.npu for card in info.cards] == [0]


def test_a_table_cut_inside_a_process_or_before_the_first_card_says_so():
    text = info_text([card_lines(0)], [(0, 4711, "python", 20480)])
    info = parse_info(text[: text.rindex("20480") + 2])
    assert info.is_partial and info.cards and not info.processes
    assert parse_info(HEAD).is_partial


@pytest.mark.parametrize(("health", "read"), [("Abnormal", "Abnormal"), ("-", None), ("NA", None)])
def test_a_card_with_a_health_that_is_not_known_keeps_its_row(health, read):
    info = parse_info(info_text([card_lines(0), card_lines(1, health=health), card_lines(2)]))
    assert [(card.npu, card.name, card.health) for card in info.cards] == [
        (0, "910B3", "OK"),
        (1, "910B3", read),
        (2, "910B3", "OK"),
    ]
    assert not info.is_partial


def test_colours_and_quotes_and_spaces_of_a_web_page_change_nothing():
    text = info_text([card_lines(0), card_lines(1)], [(1, 4711, "python", 20480)])
    coloured = "\x1b[H\x1b[2J" + text.replace("| 1 ", "\x1b[1m| 1 ")
    quoted = "\n".join(f"> > {line}" for line in text.splitlines())
    for other in (coloured, quoted, text.replace(" ", "\u00a0")):
        assert is_info(other) and parse_info(other) == parse_info(text)


def test_of_repeated_outputs_the_last_whole_one_counts():
    earlier = info_text([card_lines(0), card_lines(1)], [(1, 4711, "python", 20480)])
    later = info_text([card_lines(0, used=60318), card_lines(1)], [(0, 4712, "python", 57000)])
    assert parse_info(f"Every 1.0s: npu-smi info\n\n{earlier}\n{later}") == parse_info(later)
    assert parse_info(earlier + later[: len(later) // 2]) == parse_info(earlier)
    assert parse_info(earlier[: len(earlier) // 2]).is_partial


def test_windows_line_ends_and_a_prompt_change_nothing():
    text = info_text([card_lines(0), card_lines(1)])
    noisy = "root@host:~# npu-smi info\n" + text.replace("\n", "\r\n")
    assert parse_info(noisy) == parse_info(text)


def test_the_list_of_chips_in_a_container():
    text = (
        "npu-smi info -m\n"
        + mapping_text([4, 6]).replace("NPU ID", "\tNPU ID")
        + "\nnpu-smi info\n\n7   0   9   x\n"
    )
    table = parse_mapping(text)
    assert is_mapping(text)
    assert [(row["NPU ID"], row["Chip Logic ID"]) for row in table.npus] == [(4, 0), (6, 1)]
    assert table.npus[0]["Chip Name"] == "Ascend 910B3"


def test_the_controller_is_no_npu():
    text = "NPU ID    Chip ID    Chip Logic ID    Chip Name\n6    0    0    MiniD\n6    4    -    Mcu\n"
    table = parse_mapping(text)
    assert len(table.rows) == 2 and len(table.npus) == 1
    assert table.rows[1]["Chip Logic ID"] == "-"
    without_numbers = "NPU ID    Chip ID    Chip Name\n6    0    MiniD\n6    4    Mcu\n"
    assert [row["Chip Name"] for row in parse_mapping(without_numbers).npus] == ["MiniD"]
    without_name = "NPU ID    Chip ID    Chip Logic ID    Chip Name\n6    0    0    MiniD\n6    4    -\n"
    assert [row["Chip Name"] for row in parse_mapping(without_name).npus] == ["MiniD"]


def test_a_row_of_a_later_driver_may_have_more_than_the_heading_names():
    text = "NPU ID    Chip ID    Chip Logic ID    Chip Name\n6    0    0    Ascend 910B3    A2\n"
    assert [row["Chip Name"] for row in parse_mapping(text).npus] == ["Ascend 910B3"]


def test_figures_in_blocks_with_the_chip_before_or_after():
    text = """# npu-smi info -t usages -i 2
    NPU ID                         : 2
    Chip Count                     : 2

    HBM Usage Rate(%)              : 5
    Chip ID                        : 0

    Chip ID                        : 1
    HBM Usage Rate(%)              : 97
    Error Information              :
"""
    blocks = parse_blocks(text)
    assert npu_of(blocks) == 2
    assert per_chip(blocks)["0"]["HBM Usage Rate(%)"] == "5"
    assert per_chip(blocks)["1"] == {"Chip ID": "1", "HBM Usage Rate(%)": "97", "Error Information": ""}


def test_a_name_seen_before_begins_the_next_block():
    blocks = parse_blocks(
        "Chip ID   : 0\nPower : 1\nChip ID   : 1\nPower : 2\nDatetime: 2024-09-09 13:13:44\n"
    )
    assert blocks == [{"Chip ID": "0", "Power": "1"}, {"Chip ID": "1", "Power": "2"}]
    assert npu_of(blocks) is None


@pytest.mark.parametrize(
    "text, line, means",
    [
        (
            "DrvMngGetConsoleLogLevel failed. (ret=4)\ndcmi module initialize failed. ret is -8005\n",
            "dcmi module initialize failed. ret is -8005",
            "several",
        ),
        (
            "# npu-smi info\ndcmi model initialized failed, because the device is used. ret is -8020\n",
            "dcmi model initialized failed, because the device is used. ret is -8020",
            "in use elsewhere",
        ),
        (
            "npu-smi: error while loading shared libraries: libdrvdsmi_host.so: cannot open shared object file\n",
            "npu-smi: error while loading shared libraries: libdrvdsmi_host.so: cannot open shared object file",
            "mount /usr/local/Ascend/driver into the container",
        ),
        ("There is no NPU card on this server.\n", "There is no NPU card on this server.", ""),
        ("This device does not support querying topo.\n", "This device does not support querying topo.", ""),
        ("", "", ""),
    ],
)
def test_an_error_is_one_line_and_never_a_guess(text, line, means):
    assert not is_info(text) and not is_mapping(text)
    assert find_error(text) == line
    if means == "several":
        assert return_code(line) == -8005
        assert "another container" in explain_error(line) and "permission" in explain_error(line)
    else:
        assert means in explain_error(line) and bool(means) == bool(explain_error(line))


@pytest.mark.cases
def test_real_outputs_are_read_as_their_key_says(capsys):
    folder = Path(os.environ.get("SWIFTLET_CASES", "")) / "npu_smi"
    if not os.environ.get("SWIFTLET_CASES") or not folder.is_dir():
        pytest.skip("SWIFTLET_CASES names no folder of real outputs")
    import importlib.util

    place = Path(__file__).parents[2] / "tools" / "check_npu_smi_cases.py"
    found = importlib.util.spec_from_file_location("check_npu_smi_cases", place)
    tool = importlib.util.module_from_spec(found)
    found.loader.exec_module(tool)
    assert tool.main(folder) == 0, capsys.readouterr().out
