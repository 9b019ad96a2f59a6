"""From NPROC_PER_NODE and its friends to processes: torchrun, with the arguments as a list.

The data is prepared here, in one process without torch, before any process of the group exists, so that no rank
ever waits in a collective for a tokeniser.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from swiftlet.errors import SwiftletError, UsageError, raise_all


class Shape(NamedTuple):
    """How many processes run, and where they meet."""

    processes_per_node: int
    num_nodes: int
    node_rank: int
    master_addr: str
    master_port: int
    is_worker: bool

    @property
    def world_size(self) -> int:
        """Number of processes on all nodes."""
        return self.processes_per_node * self.num_nodes

    @property
    def needs_launcher(self) -> bool:
        """Whether this process starts the others, instead of being one of them."""
        return not self.is_worker and self.world_size > 1


def _whole(
    environ: Mapping[str, str], name: str, default: int, least: int, mistakes: list[SwiftletError]
) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if text.isdigit() and int(text) >= least:
        return int(text)
    message = f"{name} is a whole number of at least {least}, found {text!r}"
    mistakes.append(UsageError(message, f"type {name}={max(default, least)} before the command"))
    return default


def read_shape(environ: Mapping[str, str]) -> Shape:
    """Return how many processes the environment asks for.

    Raises:
        SwiftletError: a variable that is not a number, or numbers that do not fit together; all of them at once.
    """
    mistakes: list[SwiftletError] = []
    is_worker = "LOCAL_RANK" in environ
    processes = _whole(environ, "NPROC_PER_NODE", 0, 1, mistakes)
    num_nodes = _whole(environ, "NNODES", 1, 1, mistakes)
    node_rank = _whole(environ, "NODE_RANK", 0, 0, mistakes)
    port = _whole(environ, "MASTER_PORT", 29500, 1, mistakes)
    if node_rank >= num_nodes:
        hint = f"type NNODES={node_rank + 1}, or a NODE_RANK below {num_nodes}"
        mistakes.append(UsageError(f"NODE_RANK={node_rank}, but NNODES={num_nodes}", hint))
    if num_nodes > 1 and not environ.get("MASTER_ADDR") and not is_worker:
        hint = "type MASTER_ADDR=address of node 0 before the command"
        mistakes.append(UsageError(f"NNODES={num_nodes}, but MASTER_ADDR is not set", hint))
    if not is_worker:
        processes = _with_visible_devices(environ, processes, mistakes)
    raise_all(mistakes)
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    return Shape(processes or 1, num_nodes, node_rank, address, port, is_worker)


def _with_visible_devices(environ: Mapping[str, str], processes: int, mistakes: list[SwiftletError]) -> int:
    from swiftlet.device import visible

    found = visible.check_visible(environ)
    mistakes += found
    return processes or (1 if found else visible.processes_per_node(environ))


def worker_command(name: str, words: Sequence[str], shape: Shape) -> list[str]:
    """Return the torchrun command line of one node, as a list."""
    meeting = ["--standalone"] if shape.num_nodes == 1 else _meeting(shape)
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *meeting,
        f"--nproc_per_node={shape.processes_per_node}",
        "--no-python",
        sys.executable,
        "-m",
        "swiftlet.cli",
        name,
        *words,
    ]


def _meeting(shape: Shape) -> list[str]:
    return [
        f"--nnodes={shape.num_nodes}",
        f"--node_rank={shape.node_rank}",
        f"--master_addr={shape.master_addr}",
        f"--master_port={shape.master_port}",
    ]


def launch(name: str, words: Sequence[str], shape: Shape) -> int:
    """Run the command in `shape.processes_per_node` processes on this node and return the exit code of the group."""
    environ = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", _threads(shape))}
    return subprocess.run(worker_command(name, words, shape), env=environ, check=False).returncode


def _threads(shape: Shape) -> str:
    return str(max(1, len(os.sched_getaffinity(0)) // shape.processes_per_node))
