"""The processes of a run: who I am, and the few small things that all of them must agree on.

Alone (world size 1) nothing is communicated. Small objects travel as JSON in byte tensors, never as pickles.
The caller names the back end and the device on which collectives live.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist

from swiftlet import log
from swiftlet.errors import UsageError
from swiftlet.reach import connect

AGENT = "TORCHELASTIC_USE_AGENT_STORE"  # set by torchrun, which serves the store itself
ATTEMPT = "TORCHELASTIC_RESTART_COUNT"
ANSWER_S = 30.0  # for the store of rank 0, which a thread of its own serves


@dataclass(frozen=True)
class World:
    """This process among all, of which `local_world_size` are on its machine.

    `device` is where the tensors of collectives live.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to communicate with."""
        return self.world_size == 1

    @property
    def num_nodes(self) -> int:
        """How many machines the run is on."""
        return self.world_size // self.local_world_size

    def barrier(self) -> None:
        """Wait for all ranks."""
        if not self.is_alone:
            dist.all_reduce(torch.zeros(1, device=self.device))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over ranks, in place."""
        if not self.is_alone:
            dist.all_reduce(values)
        return values

    def agree(self, flag: bool) -> bool:
        """Return whether any rank raises `flag`; the same answer on every rank."""
        if self.is_alone:
            return flag
        found = torch.tensor([int(flag)], device=self.device, dtype=torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found.item())

    def gather(self, value: Any) -> list[Any]:
        """Return the JSON value of each rank, in rank order, on every rank."""
        if self.is_alone:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        size = torch.tensor([len(content)], device=self.device)
        sizes = [torch.zeros_like(size) for _ in range(self.world_size)]
        dist.all_gather(sizes, size)
        counts = [int(one.item()) for one in sizes]
        padded = torch.zeros(max(counts), dtype=torch.uint8, device=self.device)
        padded[: len(content)] = content
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [json.loads(part[:n].cpu().numpy().tobytes()) for part, n in zip(parts, counts, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's JSON value on every rank."""
        return self.gather(value if self.is_main else None)[0]


def init_world(backend: str, device: torch.device, *, timeout_s: float = 1800, always: bool = False) -> World:
    """Join the other processes of the run and return the world.

    Args:
        backend: the library of collectives, as torch.distributed names it.
        always: make a process group for one process too; sharding engines need one.

    Raises:
        SwiftletError: rank 0 cannot be reached, or something else answers in its place.
    """
    world_size = log.world_size()
    if world_size > 1 or always:
        if world_size == 1:
            store = dist.HashStore()
            dist.init_process_group(
                backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=timeout_s)
            )
        else:
            _meet(backend, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout_s)
    world = World(log.rank(), world_size, device)
    # torchrun says how many are here; a cluster that numbers the ranks itself may not.
    hosts = world.gather(socket.gethostname())
    told = os.environ.get("LOCAL_WORLD_SIZE")
    return replace(world, local_world_size=int(told) if told else hosts.count(hosts[world.rank]))


def _meet(backend: str, address: str, port: int, timeout_s: float) -> None:
    timeout = timedelta(seconds=timeout_s)
    if os.environ.get(AGENT) != "True":
        if log.rank():
            check_main(address, port, timeout_s=timeout_s)
        dist.init_process_group(backend, timeout=timeout)
        return
    # torchrun keeps its store when it starts the ranks again (its --max_restarts), and in it the addresses of those
    # that are gone, at which the new ones would look for each other.
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    own = dist.PrefixStore(f"attempt-{os.environ.get(ATTEMPT, '0')}", store)
    dist.init_process_group(backend, store=own, rank=log.rank(), world_size=log.world_size(), timeout=timeout)


def check_main(address: str, port: int, *, timeout_s: float, answer_s: float = ANSWER_S) -> None:
    """Wait for rank 0 to listen and check that it is rank 0: for an answer of another torch would wait without end.

    Args:
        answer_s: how long rank 0 may take to answer.

    Raises:
        SwiftletError: it cannot be reached, or something else holds its port.
    """
    connect("rank 0", address, port, timeout_s).close()
    answers: list[bool] = []

    def ask() -> None:
        try:
            dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=answer_s))
        except RuntimeError:  # it has closed the line
            return
        answers.append(True)

    asking = Thread(target=ask, daemon=True)  # nothing ends a call that waits for an answer
    asking.start()
    asking.join(answer_s)
    if not answers:
        raise UsageError(
            f"what listens at MASTER_ADDR={address}, MASTER_PORT={port} is not rank 0 of this run",
            f"type another one for every process, such as MASTER_PORT={port + 1}; ss -lntp shows there what holds it",
        )


def close_world(world: World, *, is_failed: bool = False) -> None:
    """Leave the process group, if there is one; after a failure without a word to the other ranks, who may be anywhere.

    A rank that fails alone ends with its process: waiting here would meet another collective of the others.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if is_failed and not world.is_alone:
        return
    world.barrier()
    dist.destroy_process_group()
