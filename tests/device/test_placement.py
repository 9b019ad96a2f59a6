"""Which process sits where, on machines with npu-smi, with nvidia-smi and with neither."""

from __future__ import annotations

import os
import stat
import sys

import pytest
from npu_smi_texts import card_lines, info_text, mapping_text

from swiftlet.device.affinity import as_text
from swiftlet.device.nvidia_smi import COLUMNS, Gpu, look_at_gpus, parse_gpus
from swiftlet.device.placement import bind_process, check_devices, chosen, find_seat, near_gpus

ROWS = (
    "0, NVIDIA H100, 512, 81559, 0, 31, 00000000:1A:00.0, 570.86\n"
    "1, NVIDIA H100, [N/A], 81559, 97, 60, 00000000:C1:00.0, 570.86\n"
)


def test_seats_follow_the_visible_ids(eight_cards):
    environ = {**eight_cards, "ASCEND_RT_VISIBLE_DEVICES": "1,4,6"}
    found = [as_text(find_seat("npu", rank, 3, environ, range(192)).cpus) for rank in range(3)]
    assert found == ["156-167", "0-11", "48-59"]


def test_fewer_processes_than_devices_take_the_first(eight_cards):
    assert as_text(find_seat("npu", 1, 2, eight_cards, range(192)).cpus) == "156-167"


def test_more_processes_than_devices_share_evenly(npu_smi):
    binding = find_seat("npu", 1, 2, npu_smi("dcmi module initialize failed. ret is -8005"), range(4))
    assert as_text(binding.cpus) == "2-3" and "no processors next to the devices are known" in binding.reason


@pytest.mark.parametrize(
    "text, devices",
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2", [2]),
        ("0,7", [0]),
        ("GPU-a", []),
        ("²", []),
        pytest.param("9" * 5000, [], id="long"),
    ],
)
def test_chosen_devices(text, devices):
    environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert chosen("CUDA_VISIBLE_DEVICES", environ, 3) == devices


def test_gpus_are_read_by_columns():
    first, second = parse_gpus(ROWS)
    assert first == Gpu(0, "NVIDIA H100", 512, 81559, 0, 31, "00000000:1A:00.0", "570.86")
    assert second.used_mb is None and second.busy_pct == 97
    assert parse_gpus("No devices were found\n") == [] and len(COLUMNS) == len(Gpu._fields)


def _nvidia_smi(folder, text, code=0):
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({text!r})\nsys.exit({code})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": str(folder)}


def test_gpus_of_nvidia_smi_or_why_there_are_none(tmp_path):
    assert look_at_gpus({"PATH": str(tmp_path)}) == ([], "")
    assert len(look_at_gpus(_nvidia_smi(tmp_path, ROWS))[0]) == 2
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
    assert look_at_gpus(_nvidia_smi(tmp_path, failed, 9)) == ([], failed.strip())
    assert look_at_gpus(_nvidia_smi(tmp_path, "", 9))[1].endswith("ended with exit code 9")


def test_processors_next_to_a_gpu_come_from_its_pci_address(tmp_path):
    place = tmp_path / "0000:1a:00.0"
    place.mkdir()
    (place / "local_cpulist").write_text("0-3,8\n")
    assert near_gpus(parse_gpus(ROWS), tmp_path) == {0: [0, 1, 2, 3, 8], 1: []}


def test_a_process_alone_on_a_cpu_is_left_as_it_is():
    before = os.sched_getaffinity(0)
    assert bind_process("cpu", 0, 1, {"PATH": ""}) == []
    assert os.sched_getaffinity(0) == before


def test_too_few_processors_bind_nothing_and_say_so():
    before = os.sched_getaffinity(0)
    (line,) = bind_process("cpu", 0, len(before) + 1, {"PATH": ""})
    assert line.startswith("process 0: ") and line.endswith("not bound")
    assert os.sched_getaffinity(0) == before


def test_processes_on_one_cpu_share_it():
    before = os.sched_getaffinity(0)
    if len(before) == 1:
        pytest.skip("this process has one processor, which nobody can share")
    try:
        (line,) = bind_process("cpu", 0, 2, {"PATH": ""})
        assert line.startswith("process 0 runs on processors ")
        assert os.sched_getaffinity(0) < before
    finally:
        os.sched_setaffinity(0, before)


def test_only_cards_that_the_run_will_use_are_named(npu_smi):
    cards = [card_lines(0), card_lines(1, used=64300), card_lines(2, health="Alarm"), card_lines(3)]
    environ = npu_smi(info_text(cards), mapping_text(range(4)))

    def named(kind="AUTO", **more):
        return [finding.message.split(" (")[0] for finding in check_devices(kind, environ | more)]

    assert named() == [] == named("cpu", NPROC_PER_NODE="4")
    assert named(NPROC_PER_NODE="2") == ["NPU 1"] == named("npu", ASCEND_RT_VISIBLE_DEVICES="0,1,3")
    assert named(ASCEND_RT_VISIBLE_DEVICES="1,2", NPROC_PER_NODE="1") == ["NPU 1"]
    assert named(NPROC_PER_NODE="4") == ["NPU 2", "NPU 1"]
