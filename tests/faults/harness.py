"""Runs of the real command line that can be broken at any instant, and what is left of them.

A run is a process of its own. It is forked from a server that has imported everything already, which saves the seconds
that an interpreter needs to start, and then calls the program's entry point with the arguments and the environment of
the run; `launch` starts the installed program instead, for what concerns several processes.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from swiftlet import faults
from swiftlet.files import sha256
from swiftlet.train.resume import list_checkpoints, open_checkpoint

PRELOADED = [
    "swiftlet.commands.training",
    "swiftlet.commands.answering",
    "swiftlet.commands.merging",
    "swiftlet.models.load",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.generation",
    "peft",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch._dynamo",
    "torch.distributed",
    "harness",
]
CODE_OF_BUG = 1
PATIENCE_S = 300.0


def server():
    """Return the context whose processes are forked from the warm server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def be_the_program(argv: list[str], environ: dict[str, str], output: str) -> None:
    """Become `swift argv`: this environment, output into a file, the program's exit code."""
    gc.freeze()  # of what the server has imported the collector would write into every page
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environ)
    from swiftlet import cli
    from swiftlet.train import plots

    plots.draw = lambda file, folder: 0  # pictures are half of the time of so small a run
    try:
        code = cli.main(argv)
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        sys.excepthook(*sys.exc_info())
        code = CODE_OF_BUG
    sys.exit(code)


@dataclass
class Done:
    """How a run ended: its exit code (negative: a signal), what it printed, and how long it took."""

    code: int | None
    text: str
    seconds: float


@dataclass
class Started:
    """A run under way."""

    process: BaseProcess
    output: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def kill_after(self, seconds: float, number: int = 9) -> None:
        """Send a signal at a given time after the start, unless the run ends before."""
        self.process.join(max(0.0, self.began + seconds - time.monotonic()))
        if self.process.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout_s: float = PATIENCE_S) -> Done:
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"no end after {timeout_s} s:\n{self.output.read_text('utf-8', 'replace')}")
        text = self.output.read_text("utf-8", "replace")
        return Done(self.process.exitcode, text, time.monotonic() - self.began)


@dataclass
class Runs:
    """Runs of one model on one file of rows in one folder; `options` are those of every run."""

    folder: Path
    options: dict[str, object]
    environ: dict[str, str]
    count: int = 0
    seconds: float = 0.0

    @property
    def output(self) -> Path:
        return self.folder / "run"

    def argv(self, command: str = "sft", **options: object) -> list[str]:
        words = [command]
        for name, value in {**self.options, **options}.items():
            if value is not None:
                values = value if isinstance(value, list) else [value]
                words += [f"--{name}", *map(str, values)]
        return words

    def variables(self, fault: str = "", **more: str) -> dict[str, str]:
        return {**self.environ, **({faults.VARIABLE: fault} if fault else {}), **more}

    def start(self, command: str = "sft", *, fault: str = "", variables=(), **options: object) -> Started:
        """Start a run in a process forked from the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count += 1
        output = self.folder / f"output-{self.count}.txt"
        output.touch()  # a kill may come before the process opens it
        environ = self.variables(fault, **dict(variables))
        words = self.argv(command, **options)
        process = server().Process(target=be_the_program, args=(words, environ, str(output)))
        process.start()
        return Started(process, output)

    def run(self, command: str = "sft", **options) -> Done:
        """Make a run to its end."""
        return self.start(command, **options).wait()

    def start_ranks(self, number: int, *, fault: str = "", **options: object) -> list[Started]:
        """Start the ranks of a run as a cluster does that sets RANK and WORLD_SIZE itself."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_PORT": port}
        return [
            self.start(
                fault=fault,
                variables={**shared, "MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
                **options,
            )
            for rank in range(number)
        ]

    def run_ranks(self, number: int, **options: object) -> list[Done]:
        """Make a run of several ranks to its end."""
        return [rank.wait() for rank in self.start_ranks(number, **options)]

    def torchrun(self, number: int, *, fault: str = "", **options: object) -> Done:
        """Let torchrun itself start the ranks, and once more when one has failed; make the run to its end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["--standalone", f"--nproc_per_node={number}", "--max_restarts=1", "-m", "swiftlet.cli"]
        command = [sys.executable, "-m", "torch.distributed.run", *words, *self.argv(**options)]
        environ, began = self.variables(fault, TMPDIR=str(self.folder)), time.monotonic()
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        return Done(done.returncode, done.stdout + done.stderr, time.monotonic() - began)

    def launch(self, number: int = 1, *, fault: str = "", **options: object) -> Launched:
        """Start the installed program, which starts `number` processes itself where that is more than one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count += 1
        output = self.folder / f"output-{self.count}.txt"
        environ = self.variables(fault, NPROC_PER_NODE=str(number), TMPDIR=str(self.folder))
        with output.open("wb") as file:
            command = [sys.executable, "-m", "swiftlet.cli", *self.argv(**options)]
            process = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
        return Launched(process, output, self.folder)

    def losses(self) -> dict[int, float]:
        """Return the training loss by step, as logged."""
        file = self.output / "logging.jsonl"
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return {entry["global_step"]: entry["loss"] for entry in entries if "loss" in entry}

    def log_lines(self) -> list[dict[str, object]]:
        """Return the figures of logging.jsonl that do not depend on the time."""
        entries = [
            json.loads(line) for line in (self.output / "logging.jsonl").read_text("utf-8").splitlines()
        ]
        timed = {"tokens_per_second", "memory_gib"}
        return [
            {name: value for name, value in entry.items() if name not in timed}
            for entry in entries
            if "train_runtime" not in entry
        ]

    def valid_steps(self) -> list[int]:
        """Return the steps of the valid checkpoints."""
        found = [open_checkpoint(path) for path in list_checkpoints(self.output)]
        return sorted(one.manifest.step for one in found if not isinstance(one, str))

    def hashes(self, step: int) -> dict[str, str]:
        """Return the sha256 of every file of a checkpoint."""
        folder = self.output / f"checkpoint-{step}"
        return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    def drafts(self) -> list[str]:
        """Return what an unfinished save has left."""
        return sorted(path.name for path in self.output.glob(".tmp-*"))

    def another(self, name: str, **options: object) -> Runs:
        """Return runs of the same kind in another folder."""
        folder = self.folder.parent / name
        shutil.rmtree(folder, ignore_errors=True)
        merged = {**self.options, **options, "output_dir": folder / "run"}
        return Runs(folder, merged, self.environ)


@dataclass
class Launched:
    """A program under way that has started others."""

    process: subprocess.Popen[bytes]
    output: Path
    folder: Path
    began: float = field(default_factory=time.monotonic)

    def text(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def beats(self) -> list[dict[str, int]]:
        """Return the last signs of life of the ranks."""
        files = sorted(self.folder.glob("swiftlet-*/rank-*[0-9].json"))
        return [json.loads(file.read_text("utf-8")) for file in files]

    def wait_for_step(self, step: int, number: int, timeout_s: float = PATIENCE_S) -> list[dict[str, int]]:
        """Wait until all ranks are at this step and return where they are."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self.process.poll() is None:
            beats = [beat for beat in self.beats() if beat["phase"] == "step" and beat["step"] >= step]
            if len(beats) == number:
                return beats
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached:\n{self.text()}")

    def wait(self, timeout_s: float = PATIENCE_S) -> Done:
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end after {timeout_s} s:\n{self.text()}") from None
        return Done(code, self.text(), time.monotonic() - self.began)

    def left(self) -> list[int]:
        """Return the processes of this run that still exist."""
        mark = f"TMPDIR={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found
