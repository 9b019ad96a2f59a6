"""The matrix of links: both kinds of names, no column of processors, network cards, and what is refused."""

from __future__ import annotations

import pytest
from npu_smi_texts import NEAR, topology_text

from swiftlet.device.topology import TopologyError, is_topology, parse_ranges, parse_topology

NAMES = [f"NPU{number}" for number in range(8)]


def test_the_published_matrix():
    text = "root@host:~# npu-smi info -t topo\n" + topology_text(NAMES, NEAR)
    found = parse_topology(text)
    assert is_topology(text)
    assert found.ids == NAMES
    assert found.matrix[2] == ["HCCS", "HCCS", "X", "HCCS", "HCCS", "HCCS", "HCCS", "HCCS"]
    assert found.cpu_affinity["NPU4"] == [[0, 23]] and found.affinity_column


def test_physical_ids_and_no_processors():
    names = [f"Phy-ID{number}" for number in range(16)]
    found = parse_topology(topology_text(names, None, "HCCS_SW"))
    assert found.ids[12] == "Phy-ID12"
    assert found.cpu_affinity == {} and not found.affinity_column


def test_network_cards_are_left_out():
    text = """        NPU0    NPU1    NIC0    CPU Affinity    NUMA Affinity
NPU0     X      PIX     PHB     0-63, 128-191   0
NPU1    PIX      X      SYS     64-127          1
NIC0    PHB     SYS      X
NIC0: mlx5_0
"""
    found = parse_topology(text)
    assert found.ids == ["NPU0", "NPU1"]
    assert found.matrix == [["X", "PIX"], ["PIX", "X"]]
    assert found.cpu_affinity == {"NPU0": [[0, 63], [128, 191]], "NPU1": [[64, 127]]}


def test_a_range_that_is_not_known_is_empty():
    found = parse_topology(topology_text(NAMES[:2], ["NA", ""]))
    assert found.cpu_affinity == {"NPU0": [], "NPU1": []}


@pytest.mark.parametrize(
    "text, said",
    [
        ("This device does not support querying topo.", "no matrix"),
        (topology_text(["NPU0", "NPUx"], ["0-3", "4-7"]), "NPUx is a placeholder"),
        (topology_text(NAMES[:3], NEAR, link="..."), "the row of NPU0 is cut off or holds no links"),
        ("\n".join(topology_text(NAMES, NEAR).splitlines()[:5]), "the row of NPU4 is cut off"),
    ],
)
def test_what_is_no_matrix_is_refused(text, said):
    with pytest.raises(TopologyError, match=said):
        parse_topology(text)


@pytest.mark.parametrize(
    "text, ranges", [("5", [[5, 5]]), ("0-3,8", [[0, 3], [8, 8]]), ("xx-xx", []), ("", []), ("0-", [])]
)
def test_ranges(text, ranges):
    assert parse_ranges(text) == ranges
