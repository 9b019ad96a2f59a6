"""Binding: golden tests on the published eight cards, and machines that are not like it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftlet.device import affinity
from swiftlet.device.affinity import as_text, bind, divide, shares
from swiftlet.device.topology import parse_ranges

PUBLISHED = ("144-167", "144-167", "96-119", "96-119", "0-23", "0-23", "48-71", "48-71")
ALL = range(192)


def cpus(text):
    return [cpu for first, last in parse_ranges(text) for cpu in range(first, last + 1)]


def near(*texts):
    return {device: cpus(text) for device, text in enumerate(texts)}


def seats(devices, table, allowed=ALL):
    return [as_text(bind(rank, devices, table, allowed).cpus) for rank in range(len(devices))]


def test_the_published_machine():
    expected = ["144-155", "156-167", "96-107", "108-119", "0-11", "12-23", "48-59", "60-71"]
    assert seats(list(range(8)), near(*PUBLISHED)) == expected


@pytest.mark.parametrize(
    "devices, expected",
    [
        ([0], ["144-155"]),
        ([1], ["156-167"]),
        ([0, 1, 2, 3], ["144-155", "156-167", "96-107", "108-119"]),
        ([3, 5], ["108-119", "12-23"]),  # ASCEND_RT_VISIBLE_DEVICES=3,5: rank 0 is NPU 3
        ([6, 7], ["48-59", "60-71"]),
    ],
)
def test_remapped_by_visible_ids(devices, expected):
    assert seats(devices, near(*PUBLISHED)) == expected


def test_each_device_has_its_own_range():
    assert seats([0, 1], near("144-167", "0-23")) == ["144-167", "0-23"]


def test_neighbours_that_do_not_stand_side_by_side():
    assert seats([0, 1, 2, 3], near("0-7", "8-15", "0-7", "8-15"), range(16)) == [
        "0-3",
        "8-11",
        "4-7",
        "12-15",
    ]


def test_two_ranges_of_threads_keep_a_core_with_one_device():
    table = near(*["0-63,128-191"] * 4, *["64-127,192-255"] * 4)
    found = seats(list(range(8)), table, range(256))
    assert found[:2] == ["0-15,128-143", "16-31,144-159"]
    assert found[7] == "112-127,240-255"


def test_a_range_that_does_not_divide_evenly():
    assert seats([0, 1, 2], near("0-7", "0-7", "0-7"), range(8)) == ["0-1", "2-4", "5-7"]


def test_a_control_group_smaller_than_the_range():
    assert seats([0, 1], near(*PUBLISHED), range(144, 150)) == ["144-146", "147-149"]


def test_a_control_group_with_holes():
    assert seats([0, 1], near(*PUBLISHED), [144, 146, 150, 160]) == ["144,146", "150,160"]


def test_a_control_group_that_leaves_one_processor_to_two_devices():
    binding = bind(0, [0, 1], near(*PUBLISHED), [144])
    assert binding.cpus == [] and "1 are too few to share: not bound" in binding.reason


def test_a_control_group_away_from_the_devices():
    binding = bind(1, [0, 1], near(*PUBLISHED), range(24, 48))
    assert "not among those that this process may use: an even share" in binding.reason
    assert as_text(binding.cpus) == "27-29"  # the second of eight shares: no other device's run takes it


def test_missing_affinity_is_an_even_share():
    binding = bind(1, [0, 1], {0: [], 1: []}, range(8))
    assert as_text(binding.cpus) == "4-7"
    assert binding.reason == "no processors next to the devices are known: an even share"


def test_a_device_missing_from_the_matrix():
    assert seats([0, 2], near("0-3", "4-7"), range(9)) == ["0-2", "6-8"]


def test_fewer_processors_than_processes_binds_nothing():
    binding = bind(2, [0, 1, 2], {}, [0, 1])
    assert binding.cpus == [] and binding.reason.endswith("2 are too few to share: not bound")


def test_fewer_processors_than_devices_of_the_machine():
    assert seats([4, 5], near(*[""] * 8), [0, 1]) == ["0", "1"]


def test_one_card_alone():
    assert seats([0], near("0-23"), range(24)) == ["0-23"]


def test_ranges_that_overlap_in_part():
    assert divide(near("0-9", "6-15"), range(16)) == {0: cpus("0-7"), 1: cpus("8-15")}


def test_sixteen_chips_without_a_unique_affinity():
    found = seats(list(range(16)), {device: list(range(320)) for device in range(16)}, range(320))
    assert found[0] == "0-19" and found[15] == "300-319"


@given(
    st.lists(st.sets(st.integers(0, 40), max_size=20), min_size=1, max_size=6),
    st.sets(st.integers(0, 40)),
)
def test_no_processor_has_two_devices_and_none_is_left_over(ranges, allowed):
    table = dict(enumerate(ranges))
    found = divide(table, allowed)
    taken = [cpu for own in found.values() for cpu in own]
    assert len(taken) == len(set(taken))
    assert set(taken) == set().union(*ranges) & allowed
    assert all(set(own) <= table[device] for device, own in found.items())


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 8))
def test_shares_are_disjoint_and_nearly_equal(own, number):
    found = shares(own, number)
    assert sorted(cpu for share in found for cpu in share) == sorted(own)


APPLY = """
import os, threading, time
from swiftlet.device.affinity import apply
waiting = threading.Event()
other = threading.Thread(target=waiting.wait, daemon=True)
other.start()
first = min(os.sched_getaffinity(0))
assert apply([first]) == ""
assert os.sched_getaffinity(0) == {first}
assert os.sched_getaffinity(other.native_id) == {first}
print(apply([4095]))
"""


def test_a_thread_that_has_ended_leaves_none_unbound(tmp_path, monkeypatch):
    bound = []

    def bind_one(thread, cpus):
        if len(bound) == 0:
            bound.append("ended")
            raise ProcessLookupError(3, "No such process")
        bound.append(cpus)

    for name in ("11", "12", "13"):
        (tmp_path / name).touch()
    monkeypatch.setattr(affinity, "TASKS", tmp_path)
    monkeypatch.setattr(affinity.os, "sched_setaffinity", bind_one)
    assert affinity.apply([1]) == ""
    assert bound == ["ended", {1}, {1}]


def test_apply_binds_every_thread_and_says_what_the_system_refuses():
    done = subprocess.run(
        [sys.executable, "-c", APPLY], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "the system refuses to bind this process to 4095: Invalid argument" in done.stdout
