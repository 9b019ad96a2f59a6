"""The live checks: devices are tried in processes of their own, within a limit of time."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet.device.settings import environment, guess_kind
from swiftlet.device.visible import count_visible
from swiftlet.doctor.explain import explain
from swiftlet.doctor.finding import Finding, found
from swiftlet.doctor.logs import lines_of
from swiftlet.doctor.scene import Scene
from swiftlet.doctor.tables import fill, load
from swiftlet.startup import module_command

CHILD = "swiftlet.doctor.live_child"
POLL_S = 0.05


class Job(NamedTuple):
    """One process that tries devices, and where its output goes."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path


def check_live(scene: Scene, timeout_s: float) -> Iterator[Finding]:
    """Try each device by itself, and two of them together.

    Most of the time is the import of torch, so the process that has tried all devices is also the first of two ranks.
    """
    kind = guess_kind(scene.environ, scene.machine)
    numbers = list(range(count_visible(kind, scene.environ, scene.machine)))
    environ = {**scene.environ, **environment(kind, scene.environ, timeout_s=120)}
    pair = numbers[:2] if kind != "cpu" else [0, 0]
    with tempfile.TemporaryDirectory(prefix="swiftlet-doctor-") as name:
        folder = Path(name)
        if len(pair) == 2:
            jobs = [
                _start(kind, tried, str(folder / "meeting"), _as_rank(environ, rank, pair), folder)
                for rank, tried in enumerate((numbers, []))
            ]
        else:
            jobs = [_start(kind, numbers, "", environ, folder)]
        _wait(jobs, timeout_s)
        yield from _together([list(_findings(job, timeout_s)) for job in jobs])
    if len(pair) < 2:
        yield found("live.skipped", check="all-reduce", said="there is one device only")


def _as_rank(environ: Mapping[str, str], rank: int, pair: Sequence[int]) -> dict[str, str]:
    return {**environ, "RANK": str(rank), "WORLD_SIZE": str(len(pair)), "LOCAL_RANK": str(pair[rank])}


def _together(said: Sequence[Sequence[Finding]]) -> Iterator[Finding]:
    """What both ranks say once: of a rank that only waited for the other one, nothing."""
    failed = [any(finding.id == "live.failed" for finding in findings) for findings in said]
    for rank, findings in enumerate(said):
        for finding in findings:
            is_victim = finding.id == "live.hangs" and (rank > 0 or any(failed))
            if not is_victim and (rank == 0 or finding.id not in ("live.done", "live.wrong")):
                yield finding


def _start(kind: str, numbers: Sequence[int], meeting: str, environ: Mapping[str, str], folder: Path) -> Job:
    name = f"{len(list(folder.glob('*.out')))}"
    output, errors = folder / f"{name}.out", folder / f"{name}.err"
    command = [*module_command(CHILD), kind, ",".join(map(str, numbers)), meeting]
    with output.open("wb") as out, errors.open("wb") as err:
        return Job(subprocess.Popen(command, stdout=out, stderr=err, env=dict(environ)), output, errors)


def _wait(jobs: Sequence[Job], timeout_s: float) -> None:
    """Wait for all jobs; end those that are not done in time, or that wait for one that has failed."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and any(job.process.poll() is None for job in jobs):
        if any(job.process.poll() not in (None, 0) for job in jobs):
            break
        time.sleep(POLL_S)
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
        job.process.wait()


def _findings(job: Job, timeout_s: float) -> Iterator[Finding]:
    begun: dict[str, Any] | None = None
    for line in job.output.read_text("utf-8", "replace").splitlines():
        if not line.startswith("{"):
            continue  # a library that prints
        said = json.loads(line)
        begun = said if said["state"] == "begins" else None
        about = {"check": said["check"], "device": said["device"]}
        if said["state"] == "right":
            yield found(
                "live.done", **about, said=f"difference {said['difference']:.1g}, {said['seconds']:.1f} s"
            )
        elif said["state"] == "wrong":
            yield found("live.wrong", **about, said=f"difference {said['difference']:.1g}")
        elif said["state"] == "left out":
            yield found("live.skipped", check=said["check"], said=said["reason"])
    code = job.process.returncode
    if code == -9 and begun is None and job.output.stat().st_size:
        return  # it was only slow to leave: every check that it began has ended
    if code == -9:
        name = f"{begun['check']} on {begun['device']}" if begun else "the start of a process"
        yield found("live.hangs", check=name, limit=f"{timeout_s:.0f}")
    elif code:
        yield _failure(job, begun)


def _failure(job: Job, begun: Mapping[str, Any] | None) -> Finding:
    text = job.errors.read_text("utf-8", "replace")
    explained = explain(lines_of(text, "live check"), load({})).first
    last = next((line for line in reversed(text.strip().splitlines()) if line.strip()), "no reason is given")
    hint = (
        last.removeprefix("hint: ")
        if last.startswith("hint: ")
        else "swift doctor --log FILE with the whole output"
    )
    if explained:
        last = fill(explained.cause.words["en"], explained.fields)
        hint = fill(explained.cause.remedy["en"], explained.fields)
    check, device = (begun["check"], begun["device"]) if begun else ("the start of a process", "this machine")
    return found("live.failed", check=check, device=device, said=last, hint=hint)
