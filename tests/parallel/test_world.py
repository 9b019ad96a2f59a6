"""Joining a run that no torchrun has started: who is on this machine, and who answers in the place of rank 0."""

import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from ranks import free_port, on_ranks

from swiftlet.commands import device_setup
from swiftlet.errors import UsageError
from swiftlet.parallel.world import World, check_main


def places(world):
    return [world.local_world_size, world.num_nodes]


def test_processes_that_a_cluster_has_numbered_count_those_of_their_machine():
    assert on_ranks(places, 2) == [[2, 1], [2, 1]]


@pytest.mark.parametrize("local_world_size", [1, 2])
def test_a_numbered_process_is_bound_without_being_told_of_the_others(monkeypatch, local_world_size):
    """LOCAL_RANK without LOCAL_WORLD_SIZE, as scripts of Slurm set it: this ended with an IndexError on an NPU."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("swiftlet.device.placement.apply", lambda cpus: "")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    said = []
    monkeypatch.setattr(device_setup.log, "info", said.append)
    device_setup.bind_to_device(SimpleNamespace(kind="npu"), World(1, 2, local_world_size=local_world_size))
    assert said == [
        "process 1 runs on processors 2-3: no processors next to the devices are known: an even share"
    ]


def test_what_holds_the_port_of_rank_0_is_told_from_rank_0():
    port = free_port()
    store = dist.TCPStore(
        "127.0.0.1", port, is_master=True, timeout=timedelta(seconds=9), wait_for_workers=False
    )
    check_main("127.0.0.1", port, timeout_s=9)
    del store
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            check_main("127.0.0.1", port, timeout_s=9, answer_s=0.5)
    assert f"MASTER_ADDR=127.0.0.1, MASTER_PORT={port} is not rank 0 of this run" in caught.value.message
    assert f"such as MASTER_PORT={port + 1}" in caught.value.hint
