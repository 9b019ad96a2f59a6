"""The variables that choose devices: every mistake is found before torch, with what to type."""

from __future__ import annotations

import pytest
from npu_smi_texts import mapping_text

from swiftlet.device.machine import Machine, look_at_machine
from swiftlet.device.visible import CardNumbers, check_visible, processes_per_node, read_whole

EIGHT = Machine(npus=8)
NOTHING = Machine()


def only(environ, machine=EIGHT):
    found = check_visible(environ, machine)
    assert len(found) == 1, [str(one) for one in found]
    return found[0]


@pytest.mark.parametrize(
    "text, said, typed",
    [
        ("3,2", "not in ascending order", "2,3"),
        ("0,a", "'a' in '0,a'", "0"),
        ("0-3", "found '0-3'", "0,1,2,3"),
        ("-1", "found '-1'", "0"),
        ("1, -1", "'-1' in '1, -1'", "1"),
        ("1.0", "found '1.0'", "1"),
        ("99999999999", "found '99999999999'", "0"),
        ("1,99999999999", "'99999999999' in", "1"),
        ("5-99", "found '5-99'", "5,6,7"),
        ("0,,1", "'' in '0,,1'", "0,1"),
        ("0,1,", "'' in '0,1,'", "0,1"),
        ("[0,1]", "'[0' in '[0,1]'", "0,1"),
        ("0，1", "found '0，1'", "0,1"),
        ("0 1", "found '0 1'", "0,1"),
        ("0, 1", "holds a space", "0,1"),
        ("npu:0", "found 'npu:0'", "0"),
        ("all", "found 'all'", "0"),
        ("0,0", "device 0 twice", "0"),
        ("0,00", "device 0 twice", "0"),
        ("1.5", "found '1.5'", "1,5"),
        ("0,1,8", "names device 8, but this machine shows 8 NPUs: 0 to 7", "0,1"),
    ],
)
def test_a_wrong_list_for_npus_is_found_and_the_right_one_is_typed(text, said, typed):
    mistake = only({"ASCEND_RT_VISIBLE_DEVICES": text})
    assert said in mistake.message
    assert mistake.hint == f"type ASCEND_RT_VISIBLE_DEVICES={typed}"


@pytest.mark.parametrize("text", ["0", "7", "0,1,2,3,4,5,6,7", "1,3,5", ""])
def test_a_right_list_passes(text):
    assert check_visible({"ASCEND_RT_VISIBLE_DEVICES": text}, EIGHT) == []


def test_a_container_counts_its_own_devices_from_zero():
    mistake = only({"ASCEND_RT_VISIBLE_DEVICES": "4"}, Machine(npus=2))
    assert "2 NPUs: 0 to 1 (inside a container the numbers begin at 0" in mistake.message
    assert mistake.hint == "type ASCEND_RT_VISIBLE_DEVICES=0"
    assert "one NPU: 0" in only({"ASCEND_RT_VISIBLE_DEVICES": "1"}, Machine(npus=1)).message


def test_numbers_of_the_host_are_told_from_those_here():
    def hint(text, **numbers):
        (found,) = check_visible({"ASCEND_RT_VISIBLE_DEVICES": text}, Machine(npus=4), CardNumbers(**numbers))
        return found.hint

    here = {4: [0, 1], 6: [2, 3]}  # cards of two chips
    assert hint("4,6", here=here) == "type ASCEND_RT_VISIBLE_DEVICES=0,1,2,3"
    assert hint("9", here=here, free=[2, 3]) == "type ASCEND_RT_VISIBLE_DEVICES=2"
    assert hint("9", here=here) == "type ASCEND_RT_VISIBLE_DEVICES=0"


def test_ids_that_no_machine_has_are_not_suggested():
    for text in ("9" * 5000, "0-999999999", "-3"):
        assert only({"ASCEND_RT_VISIBLE_DEVICES": text}, NOTHING).hint == "type ASCEND_RT_VISIBLE_DEVICES=0"


def test_the_range_is_not_checked_where_nothing_tells_it():
    assert check_visible({"ASCEND_RT_VISIBLE_DEVICES": "40"}, NOTHING) == []


@pytest.mark.parametrize("variable", ["ASCEND_RT_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_as_many_processes_as_devices(variable):
    assert check_visible({variable: "0,1", "NPROC_PER_NODE": "2"}, NOTHING) == []
    mistake = only({variable: "0,1", "NPROC_PER_NODE": "4"}, NOTHING)
    assert mistake.message == f"NPROC_PER_NODE=4, but {variable} names 2 devices"
    assert mistake.hint == "type NPROC_PER_NODE=2, or name 4 devices"
    mistake = only({variable: "0,1,2", "NPROC_PER_NODE": "1"}, NOTHING)
    assert mistake.hint == f"type NPROC_PER_NODE=3, or {variable}=0"


def test_a_wrong_number_of_processes_is_left_to_the_launcher():
    assert check_visible({"ASCEND_RT_VISIBLE_DEVICES": "0", "NPROC_PER_NODE": "x"}, NOTHING) == []


@pytest.mark.parametrize(
    "name",
    ["NPU_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICE", "ASCEND_RT_VISIBLEDEVICES"],
)
@pytest.mark.parametrize("machine", [EIGHT, NOTHING])
def test_names_that_nothing_reads_are_recognised(name, machine):
    mistake = only({name: "0,1"}, machine)
    assert f"{name}=0,1 does not choose NPUs" in mistake.message
    assert mistake.hint == "type ASCEND_RT_VISIBLE_DEVICES=0,1"


@pytest.mark.parametrize("name", ["NPROC_PRE_NODE", "NPROCS_PER_NODE", "NPROC_PER_NODES", "N_PROC_PER_NODE"])
def test_names_like_the_number_of_processes_are_recognised(name):
    mistake = only({name: "2"}, EIGHT)
    assert str(mistake) == f"{name}=2: nothing reads this name\nhint: type NPROC_PER_NODE=2"
    assert check_visible({name: "2", "NPROC_PER_NODE": "2"}, EIGHT) == []


def test_a_digit_that_is_no_number_is_a_mistake():
    mistakes = []
    assert read_whole({"NPROC_PER_NODE": "²"}, "NPROC_PER_NODE", 0, 1, mistakes) == 0
    assert len(mistakes) == 1
    assert check_visible({"ASCEND_RT_VISIBLE_DEVICES": "0", "NPROC_PER_NODE": "²"}, EIGHT) == []


def test_a_wrong_name_beside_the_right_one_does_no_harm():
    assert check_visible({"NPU_VISIBLE_DEVICES": "0,1", "ASCEND_RT_VISIBLE_DEVICES": "0"}, EIGHT) == []


def test_inside_a_container_its_own_variable_is_no_mistake():
    assert check_visible({"ASCEND_VISIBLE_DEVICES": "4,6"}, Machine(npus=2)) == []
    assert check_visible({"ASCEND_VISIBLE_DEVICES": "void"}, EIGHT) == []
    assert "only the container runtime reads it" in only({"ASCEND_VISIBLE_DEVICES": "4-6"}).message


def test_cuda_on_an_ascend_machine():
    mistake = only({"CUDA_VISIBLE_DEVICES": "0,1"})
    assert "this machine has no NVIDIA devices" in mistake.message
    assert mistake.hint == "type ASCEND_RT_VISIBLE_DEVICES=0,1"
    assert check_visible({"CUDA_VISIBLE_DEVICES": ""}, EIGHT) == []
    assert check_visible({"CUDA_VISIBLE_DEVICES": "x", "ASCEND_RT_VISIBLE_DEVICES": "0"}, EIGHT) == []


@pytest.mark.parametrize("text", ["0", "1,0", "GPU-8932f937-d72c", "MIG-GPU-1/2/3,MIG-2", "", "-1"])
def test_cuda_takes_any_order_and_uuids(text):
    assert check_visible({"CUDA_VISIBLE_DEVICES": text}, Machine(gpus=2)) == []


@pytest.mark.parametrize(
    "text, said", [("0,x", "'x' in '0,x'"), ("1,1", "device 1 twice"), ("2", "names device 2")]
)
def test_cuda_mistakes(text, said):
    assert said in only({"CUDA_VISIBLE_DEVICES": text}, Machine(gpus=2)).message


def test_several_mistakes_come_together():
    environ = {"ASCEND_RT_VISIBLE_DEVICES": "1,0", "CUDA_VISIBLE_DEVICES": "0,0", "NPROC_PER_NODE": "2"}
    assert len(check_visible(environ, Machine(npus=8, gpus=2))) == 1  # CUDA's is not read beside Ascend's
    assert len(check_visible({"NPU_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "a"}, Machine(gpus=1))) == 2


@pytest.mark.parametrize(
    "environ, number",
    [
        ({}, 1),
        ({"ASCEND_RT_VISIBLE_DEVICES": "0"}, 1),
        ({"ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3"}, 4),
        ({"ASCEND_RT_VISIBLE_DEVICES": ""}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0", "ASCEND_RT_VISIBLE_DEVICES": "0,1"}, 2),
    ],
)
def test_one_process_for_each_named_device(environ, number):
    assert processes_per_node(environ) == number


def test_the_machine_is_read_from_its_nodes(tmp_path):
    for name in ("davinci0", "davinci5", "davinci_manager", "nvidia0", "nvidiactl", "null"):
        (tmp_path / name).touch()
    assert look_at_machine({}, tmp_path) == Machine(npus=2, gpus=1)
    assert look_at_machine({}, tmp_path / "none") == Machine()


def test_without_nodes_npu_smi_is_asked(npu_smi, tmp_path):
    assert look_at_machine(npu_smi(mapping=mapping_text([1, 2])), tmp_path) == Machine(npus=2)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "davinci3").touch()
    asked = look_at_machine(npu_smi(mapping=mapping_text([1, 2])), tmp_path / "dev")
    assert asked == Machine(npus=1), "a node is what this container may use"
    assert look_at_machine(npu_smi("dcmi module initialize failed. ret is -8005"), tmp_path) == Machine()
