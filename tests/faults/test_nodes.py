"""Two nodes: a run across them, a cut link, a killed node and a restart, with what differs between them refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cases import NUM_STEPS
from harness import Launched
from nodes import ADDRESSES, ip, two_nodes

pytestmark = pytest.mark.slow


@pytest.fixture
def spaces():
    with two_nodes(f"swl{os.getpid()}") as found:
        if found is None:
            pytest.skip("network namespaces are not permitted here: no ip program, or no right to use it")
        yield found


def start(runs, spaces, node, *, fault="", **options):
    """Start one node of two, one rank each; both see one disk."""
    folder = runs.folder / f"node{node}"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"output-{time.monotonic_ns()}.txt"
    environ = runs.variables(
        fault,
        NNODES="2",
        NODE_RANK=str(node),
        NPROC_PER_NODE="1",
        MASTER_ADDR=ADDRESSES[0],
        MASTER_PORT="29611",
        TMPDIR=str(folder),
    )
    words = ["ip", "netns", "exec", spaces[node], sys.executable, "-m", "swiftlet.cli", *runs.argv(**options)]
    with output.open("wb") as file:
        process = subprocess.Popen(words, env=environ, stdout=file, stderr=file)
    return Launched(process, output, folder)


def start_both(runs, spaces, **options):
    return [start(runs, spaces, node, **options) for node in (0, 1)]


def wait_for_step(nodes, step):
    for node in nodes:
        node.wait_for_step(step, 1)


def check_ended(nodes):
    until = time.monotonic() + 20
    while any(node.left() for node in nodes) and time.monotonic() < until:
        time.sleep(0.2)
    assert [node.left() for node in nodes] == [[], []]


def test_a_run_across_two_nodes_equals_one_on_one_node(runs, golden_of_two, spaces):
    done = [node.wait() for node in start_both(runs, spaces)]
    assert [one.code for one in done] == [0, 0], done[0].text + done[1].text
    assert runs.hashes(NUM_STEPS) == golden_of_two.hashes(NUM_STEPS)
    print(f"figure: a run across two nodes: {done[0].seconds:.1f} s")


def test_a_cut_link_ends_both_nodes_and_the_run_starts_again_when_it_is_back(runs, golden_of_two, spaces):
    slow = "data.next:nth=0=sleep=0.5"
    nodes = start_both(runs, spaces, fault=slow, hang_timeout=8, max_restarts=1, dataloader_num_workers=0)
    wait_for_step(nodes, 6)
    cut = time.monotonic()
    assert ip("-n", spaces[0], "link", "set", "dev", "link", "down")
    for node in nodes:
        while "it starts again" not in node.text() and time.monotonic() - cut < 120:
            time.sleep(0.1)
        print(f"figure: a cut link was noticed after {time.monotonic() - cut:.1f} s")
    assert ip("-n", spaces[0], "link", "set", "dev", "link", "up")
    done = [node.wait() for node in nodes]
    assert [one.code for one in done] == [0, 0], done[0].text + done[1].text
    assert "shows no progress for " in done[0].text + done[1].text
    assert f"continuing {runs.output}/checkpoint-4 after step 4" in done[0].text
    print(f"figure: from the cut to the end of the run: {time.monotonic() - cut:.1f} s")
    check_ended(nodes)
    assert (
        runs.hashes(NUM_STEPS)["adapter_model.safetensors"]
        == (golden_of_two.hashes(NUM_STEPS)["adapter_model.safetensors"])
    )


def test_a_killed_node_is_waited_for_and_the_run_goes_on_with_it(runs, golden_of_two, spaces):
    slow = "data.next:nth=0=sleep=0.5"
    nodes = start_both(runs, spaces, fault=slow, hang_timeout=8, max_restarts=1, dataloader_num_workers=0)
    wait_for_step(nodes, 6)
    killed = time.monotonic()
    for pid in nodes[1].left():
        os.kill(pid, signal.SIGKILL)
    while "it starts again" not in nodes[0].text() and time.monotonic() - killed < 120:
        time.sleep(0.1)
    print(f"figure: a killed node was noticed after {time.monotonic() - killed:.1f} s")
    again = start(runs, spaces, 1, hang_timeout=8, max_restarts=1, dataloader_num_workers=0)
    done = [nodes[0].wait(), again.wait()]
    assert [one.code for one in done] == [0, 0], done[0].text + done[1].text
    check_ended([nodes[0], again])
    assert (
        runs.hashes(NUM_STEPS)["adapter_model.safetensors"]
        == (golden_of_two.hashes(NUM_STEPS)["adapter_model.safetensors"])
    )


def test_sigterm_to_one_node_stops_both_at_one_step(runs, golden_of_two, spaces):
    nodes = start_both(runs, spaces, fault="data.next:nth=0=sleep=0.3", dataloader_num_workers=0)
    wait_for_step(nodes, 3)
    pids = [beat["pid"] for beat in nodes[1].beats()]
    os.kill(pids[0], signal.SIGTERM)
    done = [node.wait() for node in nodes]
    assert [one.code for one in done] == [143, 143], done[0].text + done[1].text
    assert " is saved" in done[0].text


def test_nodes_with_other_data_are_refused_before_the_model_is_loaded(runs, rows_file, spaces):
    other = runs.folder / "rows.jsonl"
    runs.folder.mkdir(parents=True)
    shutil.copyfile(rows_file, other)
    with other.open("a", encoding="utf-8") as file:
        file.write('{"query": "w1", "response": "w2"}\n')
    nodes = [start(runs, spaces, 0), start(runs, spaces, 1, dataset=other)]
    done = [node.wait(60) for node in nodes]
    assert [one.code for one in done] == [2, 2]
    for one in done:
        assert "dataset differs between nodes: " in one.text
        assert "--dataset differs between nodes: " in one.text
        assert "model from" not in one.text


def test_a_node_with_bad_rows_ends_the_other_too(runs, spaces):
    bad = runs.folder / "rows.jsonl"
    runs.folder.mkdir(parents=True)
    bad.write_text('{"query": "w1", "response":\n', encoding="utf-8")
    nodes = [start(runs, spaces, 0), start(runs, spaces, 1, dataset=bad)]
    done = [node.wait(60) for node in nodes]
    assert [one.code for one in done] == [2, 4]
    assert "node 1 (" in done[0].text
    assert "rows.jsonl:1" in done[0].text


def test_an_interface_that_is_not_there_is_refused(runs, spaces):
    runs.environ = {**runs.environ, "GLOO_SOCKET_IFNAME": "ib0"}
    done = [node.wait(60) for node in start_both(runs, spaces)]
    assert {one.code for one in done} == {2}
    assert "GLOO_SOCKET_IFNAME=ib0, but this node has only lo, link" in done[0].text
