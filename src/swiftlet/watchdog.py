"""A process of its own that watches the ranks of a run: it names the one that hangs, dies or falls behind.

The limit of a phase comes from what the phase needs. Steps have the run's own pace: twenty times the median of the
steps seen, at least a minute. The first cause is printed first and once, then the stacks of all ranks, and the whole
group is ended, so that no orphan stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from swiftlet import heartbeat
from swiftlet.heartbeat import Beat, End
from swiftlet.log import warning

# Seconds a phase may last without a sign of life; a large model is read from a slow disk in half an hour.
LIMITS_S = {"start": 300.0, "tokenise": 7200.0, "load": 3600.0, "init": 600.0, "eval": 3600.0, "save": 1800.0}
FIRST_STEP_S = 1800.0
LEAST_STEP_S = 60.0
PACE = 20
STACKS_WAIT_S = 1.0
STACK_LINES = 40
GRACE_S = 5.0
POLL_S = 0.1


class Hang(NamedTuple):
    """Which rank shows no life, where, and for how long."""

    culprit: Beat
    silence_s: float
    limit_s: float


@dataclass
class Pace:
    """The time between the steps of the slowest rank seen so far."""

    hang_timeout_s: float | None = None
    last: dict[int, Beat] = field(default_factory=dict)
    step_times_s: list[float] = field(default_factory=list)
    gone: list[Beat] = field(default_factory=list)

    def see(self, beats: Sequence[Beat]) -> None:
        """Take in the latest beats, and which ranks are no longer there."""
        known = {beat.rank for beat in self.gone}
        self.gone += [beat for beat in beats if beat.rank not in known and not _is_running(beat.pid)]
        for beat in beats:
            before = self.last.get(beat.rank)
            if before and before.phase == beat.phase == "step" and beat.step > before.step:
                self.step_times_s.append((beat.time_s - before.time_s) / (beat.step - before.step))
                del self.step_times_s[:-200]
            self.last[beat.rank] = beat

    def limit_s(self, beat: Beat) -> float:
        """Return how long a rank may be silent where it is."""
        if beat.phase != "step":
            return LIMITS_S.get(beat.phase, FIRST_STEP_S)
        if self.hang_timeout_s is not None:
            return self.hang_timeout_s
        if not self.step_times_s:
            return FIRST_STEP_S
        return max(LEAST_STEP_S, PACE * statistics.median(self.step_times_s))


def find_hang(beats: Sequence[Beat], pace: Pace, now_s: float) -> Hang | None:
    """Return the rank that keeps the others waiting, once one of them is silent beyond its limit.

    All ranks of a step wait for the slowest, so the one to blame is the one that is furthest behind: the lowest
    step, and at the same step the one that has been silent longest.
    """
    silent = [beat for beat in beats if beat.phase != "end" and now_s - beat.time_s > pace.limit_s(beat)]
    if not silent:
        return None
    culprit = min(silent, key=lambda beat: (beat.step, beat.time_s))
    return Hang(culprit, now_s - culprit.time_s, pace.limit_s(culprit))


def stacks(folder: Path, beats: Sequence[Beat]) -> dict[int, str]:
    """Ask every rank for the stacks of its threads and return them by rank."""
    for beat in beats:
        _signal(beat.pid, signal.SIGCONT)
        _signal(beat.pid, signal.SIGUSR1)
    time.sleep(STACKS_WAIT_S)
    found = {}
    for beat in beats:
        file = folder / f"rank-{beat.rank}.stacks"
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        found[beat.rank] = "\n".join(lines[:STACK_LINES]) or "(no answer)"
    return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def end_group(process: subprocess.Popen[bytes], beats: Sequence[Beat]) -> None:
    """End the launcher's process group and every rank: first by request, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        for beat in beats if number == signal.SIGKILL else ():
            _signal(beat.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
    until = time.monotonic() + GRACE_S
    while any(_is_running(beat.pid) for beat in beats) and time.monotonic() < until:
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def report_hang(hang: Hang, beats: Sequence[Beat], texts: dict[int, str]) -> str:
    """Return what is printed about a hang: the culprit first, then where every rank is."""
    who = hang.culprit
    lines = [
        f"rank {who.rank} shows no progress for {hang.silence_s:.0f} s in phase {who.phase}, step {who.step} "
        f"(limit {hang.limit_s:.0f} s); the run is ended"
    ]
    lines += [f"  rank {beat.rank}: phase {beat.phase}, step {beat.step}, pid {beat.pid}" for beat in beats]
    for rank, text in texts.items():
        lines += [f"stacks of rank {rank}:", text]
    return "\n".join(lines)


def watch(
    command: Sequence[str], *, folder: Path, environ: dict[str, str], hang_timeout_s: float | None
) -> int:
    """Run the launcher's command under watch and return the exit code of the run.

    SIGTERM and SIGINT are passed on to the ranks, which save at the next step and leave.
    """
    environ = {**environ, heartbeat.VARIABLE: str(folder)}
    process = subprocess.Popen(list(command), env=environ, start_new_session=True)
    old = {
        number: signal.signal(number, _passing(folder, process)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    pace = Pace(hang_timeout_s)
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            beats = heartbeat.read_beats(folder)
            pace.see(beats)
            hang = find_hang(beats, pace, time.time())
            if hang is not None:
                warning(report_hang(hang, beats, stacks(folder, beats)))
                end_group(process, beats)
                return 1
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    end_group(process, heartbeat.read_beats(folder))
    return exit_code(heartbeat.read_ends(folder), pace.gone, process.returncode)


def _passing(folder: Path, process: subprocess.Popen[bytes]) -> Callable[[int, object], None]:
    def pass_on(number: int, frame: object) -> None:
        beats = heartbeat.read_beats(folder)
        for beat in beats:
            _signal(beat.pid, number)
        if not beats:
            _signal(process.pid, signal.SIGTERM)

    return pass_on


def exit_code(ends: Sequence[End], gone: Sequence[Beat], launcher_code: int) -> int:
    """Return the exit code of the rank that failed first and print what it said, or name the one that went silently.

    Args:
        ends: the last words of ranks, the earliest first.
        gone: the last beats of ranks whose process ended, in the order in which that was seen.
    """
    failed = [end for end in ends if end.exit_code]
    if failed:
        first = failed[0]
        is_of_all = len(failed) > 1 and all(end.message == first.message for end in failed)
        print(first.message if is_of_all else f"rank {first.rank}: {first.message}", file=sys.stderr)
        return first.exit_code
    if launcher_code and gone:
        beat = gone[0]
        warning(f"rank {beat.rank} ended without a word in phase {beat.phase}, step {beat.step} (killed?)")
    return 1 if launcher_code else 0
