"""A process of its own that watches the ranks of a run: it names the one that hangs, dies or falls behind.

The limit of a phase comes from what the phase needs. Steps have the run's own pace: twenty times the median of the
steps seen, at least a minute. The first cause is printed first and once, then the stacks of all ranks, and the whole
group is ended, so that no orphan stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from swiftlet import heartbeat
from swiftlet.doctor.failure import explain_failure
from swiftlet.heartbeat import Beat, End
from swiftlet.log import warning

# Seconds a phase may last without a sign of life; a large model is read from a slow disk in half an hour.
LIMITS_S = {"start": 300.0, "tokenise": 7200.0, "load": 3600.0, "init": 600.0, "eval": 3600.0, "save": 1800.0}
FIRST_STEP_S = 1800.0
LEAST_STEP_S = 60.0
PACE = 20
STACKS_WAIT_S = 1.0
NOBODY = 0  # stands for the process of a rank that has not shown itself
STACK_LINES = 40
COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/|/swiftlet/parallel/")
INNERMOST = 4
SILENT = "(no answer)"
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

    def see(self, beats: Sequence[Beat]) -> bool:
        """Take in the latest beats; return whether a rank has gone since the last time that was not at its end."""
        known = {beat.rank for beat in self.gone}
        gone = [
            beat
            for beat in beats
            if beat.rank not in known and beat.pid != NOBODY and not _is_running(beat.pid)
        ]
        self.gone += gone
        for beat in beats:
            before = self.last.get(beat.rank)
            if before and before.phase == beat.phase == "step" and beat.step > before.step:
                self.step_times_s.append((beat.time_s - before.time_s) / (beat.step - before.step))
                del self.step_times_s[:-200]
            self.last[beat.rank] = beat
        return any(beat.phase != "end" for beat in gone)

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
    step, and at the same step the one that has been silent longest, unless `blame` finds out more.
    """
    silent = [beat for beat in beats if beat.phase != "end" and now_s - beat.time_s > pace.limit_s(beat)]
    if not silent:
        return None
    culprit = min(silent, key=lambda beat: (beat.step, beat.time_s))
    return Hang(culprit, now_s - culprit.time_s, pace.limit_s(culprit))


def blame(hang: Hang, beats: Sequence[Beat], texts: Mapping[int, str], now_s: float) -> Hang:
    """Return the hang with the right culprit among the ranks at the same place: the one that waits for no other."""
    step, phase = hang.culprit.step, hang.culprit.phase
    same = [beat for beat in beats if (beat.step, beat.phase) == (step, phase)]
    own = [beat for beat in same if not is_waiting(texts.get(beat.rank, ""))]
    if not own or len(own) == len(same):
        return hang
    culprit = min(own, key=lambda beat: beat.time_s)
    return Hang(culprit, now_s - culprit.time_s, hang.limit_s)


def is_waiting(text: str) -> bool:
    """Return whether the stacks of a rank show its main thread, the last one, in a collective."""
    main = text.rpartition("(most recent call first):")[2].strip().splitlines()
    return any(COLLECTIVE.search(line) for line in main[:INNERMOST])


def with_missing(beats: Sequence[Beat], ranks: Sequence[int], started_s: float) -> list[Beat]:
    """Return the beats, and for each rank that has given none one of the moment of the start."""
    known = {beat.rank for beat in beats}
    return [*beats, *(Beat(rank, NOBODY, "start", 0, started_s) for rank in ranks if rank not in known)]


def stacks(folder: Path, beats: Sequence[Beat]) -> dict[int, str]:
    """Ask every rank for the stacks of its threads and return them by rank."""
    beats = [beat for beat in beats if beat.pid != NOBODY]
    for beat in beats:
        _signal(beat.pid, signal.SIGUSR1)
        _signal(beat.pid, signal.SIGCONT)  # a stopped one answers first, then goes on
    time.sleep(STACKS_WAIT_S)
    found = {}
    for beat in beats:
        file = folder / f"rank-{beat.rank}.stacks"
        text = file.read_text("utf-8").strip() if file.is_file() else ""
        found[beat.rank] = text or SILENT
    return found


def _signal(pid: int, number: int) -> None:
    if pid == NOBODY:
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def members(folder: Path) -> list[int]:
    """Return every process of the run that beats into `folder`, those that ranks have started among them."""
    mark = f"{heartbeat.VARIABLE}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def end_group(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the launcher and every process of the run: first by request, then by force."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_S)
    until = time.monotonic() + GRACE_S
    while (left := members(folder)) and time.monotonic() < until:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        process.poll()
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    if pid == NOBODY:
        return False
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def report_hang(hang: Hang, beats: Sequence[Beat], texts: dict[int, str], *, num_nodes: int = 1) -> str:
    """Return what is printed about a hang: the culprit first, then where every rank is."""
    who = hang.culprit
    lines = [
        f"rank {who.rank} shows no progress for {hang.silence_s:.0f} s in phase {who.phase}, step {who.step} "
        f"(limit {hang.limit_s:.0f} s); the run is ended"
    ]
    if num_nodes > 1 and len({(beat.phase, beat.step) for beat in beats}) == 1:
        lines.append(
            "all ranks of this node are at the same place: see what the other nodes say, and the link"
        )
    lines += [f"  rank {beat.rank}: phase {beat.phase}, step {beat.step}, pid {beat.pid}" for beat in beats]
    return "\n".join([*lines, *_shown(texts)])


def _shown(texts: dict[int, str]) -> list[str]:
    """Return the lines of all stacks, the end of each, where the main thread is."""
    return [
        line
        for rank, text in texts.items()
        for line in (f"stacks of rank {rank}:", *text.splitlines()[-STACK_LINES:])
    ]


def watch(
    command: Sequence[str],
    *,
    folder: Path,
    environ: dict[str, str],
    ranks: Sequence[int],
    hang_timeout_s: float | None,
    num_nodes: int = 1,
) -> int:
    """Run the launcher's command under watch and return the exit code of the run.

    SIGTERM and SIGINT are passed on to the ranks, which save at the next step and leave.

    Args:
        ranks: the ranks of this node, which must all show themselves.
    """
    environ = {**environ, heartbeat.VARIABLE: str(folder)}
    process = subprocess.Popen(list(command), env=environ, start_new_session=True)
    asked: list[int] = []
    old = {
        number: signal.signal(number, _passing(folder, process, asked, len(ranks)))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    pace, started_s = Pace(hang_timeout_s), time.time()
    texts: dict[int, str] = {}
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            beats = with_missing(heartbeat.read_beats(folder), ranks, started_s)
            is_new = pace.see(beats)
            hang = find_hang(beats, pace, time.time())
            if hang is not None:
                texts = stacks(folder, beats)
                hang = blame(hang, beats, texts, time.time())
                warning(report_hang(hang, beats, texts, num_nodes=num_nodes))
                end_group(process, folder)
                return heartbeat.FAILED
            if is_new and not texts and not asked:
                texts = stacks(folder, [beat for beat in beats if beat not in pace.gone])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    end_group(process, folder)
    ends = heartbeat.read_ends(folder)
    if process.returncode < 0 and len(ranks) == 1 and not any(end.exit_code for end in ends):
        ends = [heartbeat.killed(ranks[0], -process.returncode, folder)]
    code = exit_code(ends, process.returncode, asked, pace.gone)
    answers = {rank: text for rank, text in texts.items() if text != SILENT}
    if code and answers:
        print("\n".join(_shown(answers)), file=sys.stderr)
    return code


def _passing(
    folder: Path, process: subprocess.Popen[bytes], asked: list[int], num_ranks: int
) -> Callable[[int, object], None]:
    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        beats = heartbeat.read_beats(folder)
        for beat in beats:
            _signal(beat.pid, number)
        if len(beats) < num_ranks:
            _signal(process.pid, signal.SIGTERM)

    return pass_on


def exit_code(
    ends: Sequence[End], launcher_code: int, asked: Sequence[int] = (), gone: Sequence[Beat] = ()
) -> int:
    """Return the exit code of the rank that failed first and print what it said: the first cause, once.

    Args:
        ends: the last words of ranks, the earliest first.
        launcher_code: of torchrun, or of the only process.
        asked: the signals that were passed on.
        gone: the last beats of ranks whose process ended, in the order in which that was seen.
    """
    failed = [end for end in ends if end.exit_code]
    if failed:
        first = failed[0]
        is_of_all = len(failed) > 1 and all(end.message == first.message for end in failed)
        lines = [first.message if is_of_all else f"rank {first.rank}: {first.message}"]
        later = () if is_of_all else failed[1:]
        lines += [f"then rank {end.rank}: {end.message.splitlines()[-1]}" for end in later if end.message]
        pids = {beat.rank: beat.pid for beat in gone}
        if first.time_s:  # not killed: what the others say then is known to be a consequence
            lines.append(explain_failure({end.rank: end.message for end in failed}, os.environ, pids))
        print("\n".join(lines).rstrip(), file=sys.stderr)
        return first.exit_code
    if launcher_code and asked:
        print(f"stopped by signal {asked[0]} before the first step", file=sys.stderr)
        return 128 + asked[0]
    if launcher_code:
        first_gone = f"rank {gone[0].rank} in phase {gone[0].phase}, step {gone[0].step}" if gone else "all"
        warning(
            f"the run ended without a word: {first_gone} first; its launcher's exit code is {launcher_code}"
        )
    return heartbeat.FAILED if launcher_code else 0
