"""`swift npu` on a machine with cards, with GPUs, and with neither."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "device"))

from npu_smi_texts import HEAD, NEAR, card_lines, info_text, install, mapping_text, topology_text  # noqa: E402

from swiftlet.device.cards import INCOMPLETE  # noqa: E402
from swiftlet.device.overview import look  # noqa: E402

NAMES = [f"NPU{number}" for number in range(8)]
ALL = set(range(192))


@pytest.fixture
def machine(tmp_path):
    cards = [card_lines(number) for number in range(7)] + [card_lines(7, health="Warning", used=64000)]
    return install(
        tmp_path,
        info_text(cards, [(7, 99, "python", 60000)]),
        mapping_text(range(8)),
        topology_text(NAMES, NEAR),
    )


@pytest.fixture
def swift(swift_here):
    usual = {"PATH": "", "COLUMNS": "160", "HOME": os.environ.get("HOME", "/")}
    return lambda environ, *words: swift_here({**usual, **environ}, "npu", *words)


def test_tables_of_the_published_machine(swift, machine):
    done = swift({**machine, "ASCEND_RT_VISIBLE_DEVICES": "4,5,7"})
    assert done.returncode == 0, done.stderr
    assert "NPUs, driver 24.1.rc3" in done.stdout and "0000:C1:00.0" in done.stdout
    assert done.stdout.count("HCCS ") >= 56 and "144-167" in done.stdout
    assert "a run started here: 3 processes" in done.stdout
    assert "warning: NPU 7 (NPU7) has health Warning" in done.stdout
    assert "error: NPU 7 (NPU7) is busy: 64000 of 65536 MB are in use by process 99 python" in done.stdout
    assert "choose free ones: ASCEND_RT_VISIBLE_DEVICES=0,1,2" in done.stdout


def test_json_of_the_published_machine(swift, machine):
    done = swift(machine, "--json", "true")
    report = json.loads(done.stdout)
    assert report["versions"] == {"npu_smi": "24.1.rc3", "driver": "24.1.rc3"}
    assert [chip["id"] for chip in report["npus"]] == list(range(8))
    assert report["npus"][7]["processes"][0]["pid"] == 99
    assert report["topology"]["matrix"][0][1] == "HCCS"
    assert len(report["processes"]) == 8 and len(report["findings"]) == 2


def test_processes_sit_next_to_their_devices(machine):
    report = look({**machine, "ASCEND_RT_VISIBLE_DEVICES": "1,6"}, ALL).to_json()
    assert [(seat["device"], seat["cpus"]) for seat in report["processes"]] == [(1, "156-167"), (6, "48-59")]
    report = look({**machine, "NPROC_PER_NODE": "2"}, ALL)
    assert [seat.device for seat in report.seats] == [0, 1]
    assert look(machine, ALL).seats_title == "a run on all devices: NPROC_PER_NODE=8"


def test_an_incomplete_table_is_said(tmp_path):
    report = look(install(tmp_path, HEAD + card_lines(0) + "...\n" + card_lines(7)), ALL)
    assert INCOMPLETE in report.notes


def test_an_error_of_npu_smi_is_told_with_what_it_may_mean(swift, tmp_path):
    environ = install(tmp_path, "dcmi module initialize failed. ret is -8005\n")
    done = swift(environ)
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert (
        "npu-smi info says: dcmi module initialize failed. ret is -8005 (the driver gives an inner error"
        in text
    )


HELD = card_lines(2, used=41110)


@pytest.fixture
def container(tmp_path):
    """Two cards of a host, 2 and 7, the first of which another container holds."""
    cards = [HELD, card_lines(7, health="Critical")]
    return install(tmp_path, info_text(cards, [(2, 1333928, "", 37000)]), mapping_text([2, 7]))


@pytest.mark.parametrize(
    ("value", "said", "typed"),
    [
        ("1,0", "is not in ascending order", "0,1"),
        ("0,0", "names device 0 twice", "0"),
        ("0,1,2", "names device 2, but this machine shows 2 NPUs: 0 to 1", "0,1"),
        ("7", "(NPU 7 of npu-smi is device 1 here)", "1"),
        ("2,7", "(NPU 2 of npu-smi is device 0 here)", "0,1"),
        ("0,7", "(NPU 7 of npu-smi is device 1 here)", "0,1"),
        ("npu:0", "found 'npu:0'", "0"),
        ("-1", "found '-1'", "0"),
    ],
)
def test_wrong_ids_are_an_error_and_no_run(swift, container, value, said, typed):
    done = swift({**container, "ASCEND_RT_VISIBLE_DEVICES": value})
    assert "error: ASCEND_RT_VISIBLE_DEVICES" in done.stdout and said in done.stdout
    assert f"hint: type ASCEND_RT_VISIBLE_DEVICES={typed}\n" in done.stdout
    assert "a run" not in done.stdout


def test_ids_that_hide_every_device_are_an_error(swift, container):
    done = swift({**container, "ASCEND_RT_VISIBLE_DEVICES": ""})
    assert "ASCEND_RT_VISIBLE_DEVICES is set but empty" in done.stdout
    assert "hint: type unset ASCEND_RT_VISIBLE_DEVICES" in done.stdout


def test_more_processes_than_devices_are_an_error(container):
    report = look({**container, "ASCEND_RT_VISIBLE_DEVICES": "1", "NPROC_PER_NODE": "2"}, ALL)
    assert not report.seats and "names 1 device" in report.findings[0].message


def test_what_another_container_holds_is_looked_at_on_the_host(swift, container):
    done = swift(container)
    assert "in use by process 1333928, with no work" in done.stdout
    assert "outside of this container, on the host: ps -fp 1333928" in done.stdout


@pytest.mark.parametrize("columns", ["80", "100", None])
def test_no_fact_of_a_card_is_cut(container, columns):
    environ = {**container, "COLUMNS": columns} if columns else container
    command = [sys.executable, "-m", "swiftlet.cli", "npu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "", **environ})
    assert "41110 / 65536" in done.stdout and "Critical" in done.stdout and "1333928" in done.stdout
    assert ("0000:81:00.0" in done.stdout) == (columns is None)


def test_a_plain_machine_says_what_was_looked_for(swift):
    done = swift({})
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "no npu-smi was found (looked in the search path, /usr/local/bin/npu-smi" in text
    assert "no nvidia-smi was found on the search path" in text and "a run takes the CPU here" in text
    assert "npus" in json.loads(swift({}, "--json", "true").stdout)


def test_a_machine_with_gpus(swift, tmp_path):
    program = tmp_path / "nvidia-smi"
    row = "0, NVIDIA H100, 512, 81559, 3, 31, 00000000:1A:00.0, 570.86"
    program.write_text(f"#!{sys.executable}\nprint({row!r})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    done = swift({"PATH": str(tmp_path)})
    assert done.returncode == 0
    assert "GPUs, driver 570.86" in done.stdout and "NVIDIA H100" in done.stdout


def test_wrong_ids_of_gpus_are_an_error_and_no_run(tmp_path):
    program = tmp_path / "nvidia-smi"
    row = "0, NVIDIA H100, 512, 81559, 3, 31, 00000000:1A:00.0, 570.86"
    program.write_text(f"#!{sys.executable}\nprint({row!r})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    report = look({"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "3"}, {0})
    assert not report.seats and "this machine shows one GPU: 0" in report.findings[0].message
    assert look({"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0"}, {0}).seats


def test_a_driver_of_gpus_that_fails_is_quoted(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint('NVIDIA-SMI has failed')\nsys.exit(9)\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert "nvidia-smi says: NVIDIA-SMI has failed" in look({"PATH": str(tmp_path)}, {0}).notes


def test_mistakes_of_the_command_line(swift):
    done = swift({}, "--jsn", "true")
    assert done.returncode == 2 and "did you mean" in done.stderr
    assert "--json" in swift({}, "--help").stdout
