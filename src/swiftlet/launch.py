"""From NPROC_PER_NODE and its friends to processes: torchrun, with the arguments as a list.

The data is prepared here, in one process without torch, before any process of the group exists, so that no rank
ever waits in a collective for a tokeniser.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from swiftlet.config.parse import parse
from swiftlet.errors import SwiftletError, UsageError, raise_all
from swiftlet.log import warning
from swiftlet.watchdog import watch

# Exit codes that a new start cannot mend: done, a wrong command line, no checkpoint, bad data, a signal.
FINAL_CODES = frozenset({0, 2, 3, 4, 130, 143})


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
        "swiftlet.elastic",
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


def launch(name: str, words: Sequence[str], shape: Shape, command: ModuleType) -> int:
    """Run the command in all processes of this node under watch and return the exit code of the run.

    A failed run starts again from its last valid checkpoint, `--max_restarts` times; a mistake of the user or a
    signal ends it.

    Args:
        command: its `prepare` makes the data ready and returns what the processes must find in their environment.
    """
    words = list(words)
    parsed = parse(command.ARGS, words)
    settings = getattr(parsed.args, "parallel", None)
    restarts = getattr(settings, "max_restarts", 0)
    timeout_s = getattr(settings, "hang_timeout", None)
    while True:
        environ = {"OMP_NUM_THREADS": _threads(shape), **os.environ, **command.prepare(parsed)}
        with tempfile.TemporaryDirectory(prefix="swiftlet-") as folder:
            start = worker_command(name, words, shape)
            code = watch(start, folder=Path(folder), environ=environ, hang_timeout_s=timeout_s)
        if code in FINAL_CODES or restarts < 1:
            return code
        restarts -= 1
        warning(f"the run failed with exit code {code}; it starts again from its last valid checkpoint")
        words = _resumed(words)
        parsed = parse(command.ARGS, words)


def _resumed(words: list[str]) -> list[str]:
    if "--resume_from_checkpoint" in words:
        at = words.index("--resume_from_checkpoint")
        words = [*words[:at], *words[at + 2 :]]
    return [*words, "--resume_from_checkpoint", "auto"]


def _threads(shape: Shape) -> str:
    return str(max(1, len(os.sched_getaffinity(0)) // shape.processes_per_node))
