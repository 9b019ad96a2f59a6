"""From NPROC_PER_NODE and its friends to processes: torchrun, with the arguments as a list.

The data is prepared here, in one process without torch, before any process of the group exists, so that no rank
ever waits in a collective for a tokeniser.
"""

from __future__ import annotations

import os
import platform
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from swiftlet import preflight
from swiftlet.commands.run_folder import BASE_HASH, DATA_HASH, OF_THIS_START, PRINTED_DATE, RESUMED
from swiftlet.commands.run_folder import VARIABLE as FOLDER
from swiftlet.config.args import ParallelArgs
from swiftlet.config.fields import to_flat
from swiftlet.config.parse import Parsed, parse, with_copies, without_flag
from swiftlet.device.interfaces import check_interfaces, interface_variables
from swiftlet.device.processors import usable_processors
from swiftlet.device.visible import PROCESSES, check_visible, processes_per_node, read_whole
from swiftlet.errors import SwiftletError, UsageError, raise_all
from swiftlet.faults import RESTARTS
from swiftlet.files import code_hash
from swiftlet.log import info, redact, warning
from swiftlet.ranks import check_ranks
from swiftlet.startup import module_command
from swiftlet.stopping import AT_ONCE, STOP_SIGNALS
from swiftlet.train.lock import locked
from swiftlet.train.resume import list_checkpoints
from swiftlet.watchdog import GO_ON, watch

RESUME = "--resume_from_checkpoint"
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # [s]; read by torchrun
PACKAGES = ("swiftlet", "torch", "torch-npu", "transformers", "peft", "deepspeed")

# Exit codes that a new start cannot mend: done, a wrong command line, no checkpoint, bad data, a number that is not
# finite (a run that goes on comes to the same one), a signal.
FINAL_CODES = frozenset({0, 2, 3, 4, 6, *(128 + number for number in (*STOP_SIGNALS, AT_ONCE))})
LAST_PORT = 65535


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


def read_shape(environ: Mapping[str, str]) -> tuple[Shape, list[SwiftletError]]:
    """Return how many processes the environment asks for, and every mistake in it.

    Mistakes are variables that are not numbers, numbers that do not fit together, and wrong devices.
    """
    mistakes: list[SwiftletError] = []
    is_worker = "LOCAL_RANK" in environ
    processes = read_whole(environ, PROCESSES, 0, 1, mistakes)
    num_nodes = read_whole(environ, "NNODES", 1, 1, mistakes)
    node_rank = read_whole(environ, "NODE_RANK", 0, 0, mistakes)
    port = read_whole(environ, "MASTER_PORT", 29500, 1, mistakes, LAST_PORT)
    if node_rank >= num_nodes:
        hint = f"type NNODES={node_rank + 1}, or a NODE_RANK below {num_nodes}"
        mistakes.append(UsageError(f"NODE_RANK={node_rank}, but NNODES={num_nodes}", hint))
    if num_nodes > 1 and not environ.get("MASTER_ADDR") and not is_worker:
        hint = "type MASTER_ADDR=address of node 0 before the command"
        mistakes.append(UsageError(f"NNODES={num_nodes}, but MASTER_ADDR is not set", hint))
    mistakes += check_ranks(environ)
    if not is_worker:
        found = check_visible(environ)
        mistakes += found
        processes = processes or (1 if found else processes_per_node(environ))
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    return Shape(processes or 1, num_nodes, node_rank, address, port, is_worker), mistakes


def check_alone(environ: Mapping[str, str], command: str) -> list[SwiftletError]:
    """Return why a run cannot be this process alone, as one from Python is; say which devices it leaves unused.

    Args:
        command: what starts one process a device.
    """
    shape, mistakes = read_shape(environ)
    if mistakes or shape.is_worker or shape.world_size == 1:
        return mistakes
    told = [f"{name}={environ[name]}" for name in (PROCESSES, "NNODES") if environ.get(name)]
    if not told:
        warning(
            "a run from Python is one process; "
            f"{command} starts one for each of the {shape.world_size} visible devices"
        )
        return []
    message = f"{' '.join(told)} asks for {shape.world_size} processes, and a run from Python is one"
    return [UsageError(message, f"type {' '.join(told)} {command} with the same flags, or unset it")]


def report_mistakes(shape: Shape, mistakes: Sequence[SwiftletError]) -> None:
    """Tell the nodes that wait of a command line that is wrong on this node alone, such as a file that is not there."""
    if shape.is_worker or not 0 <= shape.node_rank < shape.num_nodes or shape.num_nodes == 1:
        return
    text = redact("; ".join(mistake.message for mistake in mistakes))
    facts = preflight.Facts(shape.node_rank, socket.gethostname(), problem=text)
    if shape.node_rank:
        preflight.report_problem(facts, shape.master_addr, shape.master_port)
    else:
        preflight.turn_away(facts, shape.master_port, shape.num_nodes)


def worker_command(name: str, words: Sequence[str], shape: Shape) -> list[str]:
    """Return the command line that starts the processes of one node, as a list: torchrun, or the only process."""
    process = [*module_command("swiftlet.cli"), name, *words]
    if shape.world_size == 1:
        return process
    meeting = ["--standalone"] if shape.num_nodes == 1 else _meeting(shape)
    start = [*module_command("swiftlet.elastic"), *meeting]
    return [*start, f"--nproc_per_node={shape.processes_per_node}", "--no-python", *process]


def _meeting(shape: Shape) -> list[str]:
    return [
        f"--nnodes={shape.num_nodes}",
        f"--node_rank={shape.node_rank}",
        f"--master_addr={shape.master_addr}",
        f"--master_port={shape.master_port}",
    ]


def is_watched(shape: Shape, parsed: Parsed) -> bool:
    """Return whether this process starts the others: there are several, or one that is to be watched or restarted."""
    if shape.is_worker:
        return False
    return shape.world_size > 1 or not parsed.given.isdisjoint({"hang_timeout", "max_restarts"})


def launch(name: str, words: Sequence[str], shape: Shape, command: ModuleType) -> int:
    """Run the command in all processes of this node under watch and return the exit code of the run.

    A failed run starts again from its last valid checkpoint, `--max_restarts` times; a mistake of the user or a
    signal ends it.

    Args:
        command: its `prepare` makes the data ready and returns what the processes must find in their environment.
    """
    with tempfile.TemporaryDirectory(prefix="swiftlet-") as folder:
        return _started(name, with_copies(words, Path(folder)), shape, command)


def _started(name: str, words: list[str], shape: Shape, command: ModuleType) -> int:
    settings = _settings(parse(command.ARGS, words))
    restart, told = 0, dict[str, str]()
    while True:
        again = _again(words, told.get(FOLDER))
        told = {**_prepared(name, again, shape, command), RESTARTS: str(restart)}
        code = _run_watched(worker_command(name, again, shape), shape, told, settings)
        if code and FOLDER in told and shape.node_rank == 0:
            _tidy(Path(told[FOLDER]))
        if code in FINAL_CODES or restart >= settings.max_restarts:
            return code
        restart += 1
        warning(f"the run failed with exit code {code}; it starts again from its last valid checkpoint")


def _tidy(folder: Path) -> None:
    """Remove what ranks that were killed have left in the folder of the run: a lock, and half a checkpoint."""
    with suppress(
        UsageError
    ):  # another run has it by now, or its disk takes no changes: how this one ended was said
        if folder.is_dir():
            with locked(folder):
                pass


def _settings(parsed: Parsed) -> ParallelArgs:
    """Return what the flags say of several processes, the defaults for a command that has no such flags."""
    return getattr(parsed.args, "parallel", ParallelArgs())


def _again(words: list[str], folder: str | None) -> list[str]:
    """Return the words that continue the run of this folder; those given where it has not saved anything yet."""
    if folder is None:
        return words
    os.environ[FOLDER] = folder
    if not list_checkpoints(Path(folder)):
        return words
    return [*without_flag(words, RESUME.removeprefix("--")), RESUME, folder]


def _run_watched(command: list[str], shape: Shape, told: Mapping[str, str], settings: ParallelArgs) -> int:
    environ = {"OMP_NUM_THREADS": _threads(shape), **os.environ, **told}
    # A signal that reaches torchrun itself must not cost the step or the save under way: its own limit is 30 s.
    environ[SHUTDOWN] = str(settings.ddp_timeout)
    if shape.world_size == 1:
        environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    first = shape.node_rank * shape.processes_per_node
    with tempfile.TemporaryDirectory(prefix="swiftlet-") as folder:
        return watch(
            command,
            folder=Path(folder),
            environ=environ,
            ranks=range(first, first + shape.processes_per_node),
            hang_timeout_s=settings.hang_timeout,
            num_nodes=shape.num_nodes,
            go_on=GO_ON if FOLDER in told else "",
        )


def _prepared(name: str, words: list[str], shape: Shape, command: ModuleType) -> dict[str, str]:
    """Return what `prepare` says; with several nodes what they agree on, node 0's folder among it.

    Raises:
        SwiftletError: something is wrong here, or, with the same words on every node, on another one.
    """
    parsed = parse(command.ARGS, words)
    if shape.num_nodes == 1:
        return command.prepare(parsed)
    server = preflight.listen(shape.master_port) if shape.node_rank == 0 else None
    own: dict[str, str] = {}
    problem: SwiftletError | None = None
    with tempfile.TemporaryDirectory(prefix="swiftlet-") as aside:
        if shape.node_rank:
            os.environ[FOLDER] = aside
        try:
            raise_all(check_interfaces(os.environ, [name for _, name in socket.if_nameindex()]))
            own = command.prepare(parsed)
        except SwiftletError as error:
            problem = error
            warning(f"{str(error).splitlines()[0]} (the other nodes are told before this one ends)")
    found = preflight.meet(
        _facts(name, parsed, shape, own, problem),
        num_nodes=shape.num_nodes,
        address=shape.master_addr,
        port=shape.master_port,
        server=server,
        timeout_s=_settings(parsed).ddp_timeout,
        check_shared=lambda shared: _missing(shape, shared),
    )
    raise_all([problem] if problem else [UsageError(text) for text in found.mistakes])
    if shape.node_rank and FOLDER in found.shared:
        start = found.shared.get(RESUMED) or "its beginning"
        info(f"node 0 makes the run in {found.shared[FOLDER]}, from {start}")
    return {**own, **found.shared, **interface_variables(found.address, os.environ)}


def _facts(
    name: str, parsed: Parsed, shape: Shape, own: Mapping[str, str], problem: SwiftletError | None
) -> preflight.Facts:
    installed = {distribution.name.lower(): distribution.version for distribution in distributions()}
    same = {package: installed.get(package, "none") for package in PACKAGES}
    same |= {
        "the code of swiftlet": code_hash(Path(__file__).parent)[:12],
        "python": platform.python_version(),
        "NNODES": str(shape.num_nodes),
        "NPROC_PER_NODE": str(shape.processes_per_node),
        "the command": name,
        "dataset": own.get(DATA_HASH, "none"),
        "base model": own.get(BASE_HASH, "none"),
        "the day that the chat template prints (by clock and TZ)": own.get(PRINTED_DATE) or "none",
    }
    flags = to_flat(parsed.args).items()
    same |= {f"--{flag}": redact(str(value)) for flag, value in flags if flag not in OF_THIS_START}
    shared = {key: own[key] for key in (FOLDER, RESUMED) if key in own}
    text = redact(str(problem)) if problem else ""
    return preflight.Facts(shape.node_rank, socket.gethostname(), same, shared, text)


def _missing(shape: Shape, shared: Mapping[str, str]) -> list[str]:
    checkpoint = shared.get(RESUMED)
    if not checkpoint or Path(checkpoint).is_dir():
        return []
    return [f"node {shape.node_rank} has no {checkpoint}: --output_dir must be on storage that all nodes see"]


def _threads(shape: Shape) -> str:
    return str(max(1, usable_processors() // shape.processes_per_node))
