"""A command watched from outside: when its steps ended, its processor time, the memory of all its processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

# What swift sft prints a step, and what peer_entry.py does.
MARK = re.compile(r"^(?:(?:\[rank 0\] )?\[(\d+)/\d+\] loss|@step (\d+)) ([-+.\deE]+|nan|inf)")
MEMORY = re.compile(r"^@memory (\d+) (\d+)")  # of the accelerator: allocated, reserved
PERIOD_S = 0.1


def status_bytes(key: str) -> int:
    """Return a figure of this process's memory. Source: proc(5), status."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:")) * 1024


def rank_environments(number: int) -> list[dict[str, str]]:
    """Return the environment of each rank of a run on this machine, one thread each, which meet at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


@dataclass
class Outcome:
    """How a command went; seconds count from its start."""

    code: int = -1
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss: int = 0
    marks: list[dict[str, float]] = field(default_factory=list)  # step, loss, wall_s, cpu_s
    device_peak: tuple[int, int] | None = None  # bytes allocated, bytes reserved


class Tree:
    """A process and all its descendants, the ended ones included in processor time."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.cpu: dict[int, float] = {}

    def look(self) -> int:
        """Return the resident bytes of all processes now, and note their processor time."""
        resident = 0
        try:
            processes = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        for process in processes:
            try:
                times = process.cpu_times()
                self.cpu[process.pid] = times.user + times.system
                resident += process.memory_info().rss
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return resident

    @property
    def cpu_s(self) -> float:
        """Processor seconds of all processes seen so far."""
        return sum(self.cpu.values())


def run_watched(
    command: Sequence[str], *, environ: Mapping[str, str], folder: Path, log: Path, limit_s: float
) -> Outcome:
    """Run a command to its end, or kill it and its descendants after `limit_s`; its output goes to `log`."""
    outcome, start = Outcome(), time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environ),
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        tree = Tree(child.pid)
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(tree, outcome, done, start, limit_s))
        watcher.start()
        for line in child.stdout or ():
            file.write(line)
            found = MARK.match(line)
            if found:
                tree.look()
                mark = {"step": int(found[1] or found[2]), "loss": float(found[3])}
                outcome.marks.append(mark | {"wall_s": time.perf_counter() - start, "cpu_s": tree.cpu_s})
            found = MEMORY.match(line)
            if found:
                outcome.device_peak = (int(found[1]), int(found[2]))
        outcome.code = child.wait()
        done.set()
        watcher.join()
    outcome.wall_s, outcome.cpu_s = time.perf_counter() - start, tree.cpu_s
    return outcome


def _watch(tree: Tree, outcome: Outcome, done: threading.Event, start: float, limit_s: float) -> None:
    while not done.wait(PERIOD_S):
        outcome.peak_rss = max(outcome.peak_rss, tree.look())
        if time.perf_counter() - start > limit_s:
            for process in [tree.root, *tree.root.children(recursive=True)]:
                _kill(process)
            return


def _kill(process: Any) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
