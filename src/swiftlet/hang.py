"""Which rank of a run keeps the others waiting: limits of silence by phase, and who is to blame.

The limit of a phase comes from what the phase needs. Steps have the run's own pace: twenty times the median of the
steps seen, at least a minute.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from swiftlet.heartbeat import Beat

# Seconds a phase may last without a sign of life; a large model is read from a slow disk in half an hour.
LIMITS_S = {"start": 300.0, "tokenise": 7200.0, "load": 3600.0, "init": 600.0, "eval": 3600.0, "save": 1800.0}
FIRST_STEP_S = 1800.0
LEAST_STEP_S = 60.0
SUSPENDED_S = 5.0  # between two looks of the watchdog, which come ten times a second
PACE = 20
NOBODY = 0  # stands for the process of a rank that has not shown itself
STACK_LINES = 40
COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/|/swiftlet/parallel/")
INNERMOST = 4
ENDED, STOPPED = ("", "Z"), ("T", "t")  # what the kernel says of a process
HELD = ": it was stopped, by SIGSTOP or a debugger"


class Hang(NamedTuple):
    """Which rank shows no life, where, and for how long."""

    culprit: Beat
    silence_s: float
    limit_s: float
    is_stopped: bool = False


@dataclass
class Pace:
    """What a watchdog has seen of the ranks so far, and the limits of silence that follow from their pace.

    Args:
        gone: the last beats of ranks whose process has ended, in the order in which that was seen.
        excused_s: no silence before this moment counts, because no rank could be heard.
        held_s: since when ranks have been seen stopped, by a signal or a debugger.
        looked_s: when the watchdog looked last.
    """

    hang_timeout_s: float | None = None
    last: dict[int, Beat] = field(default_factory=dict)
    step_times_s: list[float] = field(default_factory=list)
    gone: list[Beat] = field(default_factory=list)
    excused_s: float = 0.0
    held_s: dict[int, float] = field(default_factory=dict)
    looked_s: float = 0.0

    def look(self, now_s: float) -> None:
        """Note that the watchdog looks; where it comes late, the whole run was suspended, and nobody was silent."""
        if self.looked_s and now_s - self.looked_s > SUSPENDED_S:
            self.excused_s = now_s
        self.looked_s = now_s

    def see(self, beats: Sequence[Beat]) -> bool:
        """Take in the latest beats; return whether a rank has gone since the last time that was not at its end."""
        known = {beat.rank for beat in self.gone}
        gone = []
        for beat in beats:
            process = _state(beat.pid)
            if beat.rank not in known and beat.pid != NOBODY and process in ENDED:
                gone.append(beat)
            if process not in STOPPED:
                self.held_s.pop(beat.rank, None)
            elif beat.rank not in self.held_s:
                self.held_s[beat.rank] = self.looked_s
            before = self.last.get(beat.rank)
            if before and before.phase == beat.phase == "step" and beat.step > before.step:
                self.step_times_s.append((beat.time_s - before.time_s) / (beat.step - before.step))
                del self.step_times_s[:-200]
            self.last[beat.rank] = beat
        self.gone += gone
        return any(beat.phase != "end" for beat in gone)

    def limit_s(self, beat: Beat) -> float:
        """Return how long a rank may be silent where it is."""
        return self.step_s() if beat.phase == "step" else LIMITS_S.get(beat.phase, FIRST_STEP_S)

    def step_s(self) -> float:
        """Return how long a rank may be silent in a step; a stopped one anywhere, as no phase needs that."""
        if self.hang_timeout_s is not None:
            return self.hang_timeout_s
        if not self.step_times_s:
            return FIRST_STEP_S
        return max(LEAST_STEP_S, PACE * statistics.median(self.step_times_s))


def find_hang(beats: Sequence[Beat], pace: Pace, now_s: float) -> Hang | None:
    """Return the rank that keeps the others waiting, once one of them is silent beyond its limit.

    All ranks of a step wait for the slowest, so the one to blame is, of those that are silent, the one furthest
    behind: the lowest step, and at the same step the one that has been silent longest, unless `blame` finds out more.
    """
    held = {
        rank for rank, since_s in pace.held_s.items() if now_s - max(since_s, pace.excused_s) > pace.step_s()
    }
    silent = [
        beat
        for beat in beats
        if beat.phase != "end"
        and (beat.rank in held or now_s - max(beat.time_s, pace.excused_s) > pace.limit_s(beat))
    ]
    if not silent:
        return None
    culprit = min(silent, key=lambda beat: (beat.step, beat.time_s))
    limit_s = pace.step_s() if culprit.rank in held else pace.limit_s(culprit)
    return Hang(culprit, now_s - culprit.time_s, limit_s)


def blame(
    hang: Hang, beats: Sequence[Beat], texts: Mapping[int, str], now_s: float, stopped: Collection[int] = ()
) -> Hang:
    """Return the hang with the right culprit among the ranks at the same place: the one that waits for no other.

    Args:
        stopped: ranks that a signal had stopped, wherever they were, before they were asked for their stacks.
    """
    step, phase = hang.culprit.step, hang.culprit.phase
    same = [beat for beat in beats if (beat.step, beat.phase) == (step, phase)]
    own = [beat for beat in same if not is_waiting(texts.get(beat.rank, ""))]
    if len(own) == len(same):
        own = []
    held = [beat for beat in beats if beat.rank in stopped]
    if not held and not own:
        return hang
    culprit = min(held or own, key=lambda beat: beat.time_s)
    return Hang(culprit, now_s - culprit.time_s, hang.limit_s, bool(held))


def is_waiting(text: str) -> bool:
    """Return whether the stacks of a rank show its main thread, the last one, in a collective."""
    main = text.rpartition("(most recent call first):")[2].strip().splitlines()
    return any(COLLECTIVE.search(line) for line in main[:INNERMOST])


def with_missing(
    beats: Sequence[Beat], ranks: Sequence[int], started_s: float, last: Mapping[int, Beat]
) -> list[Beat]:
    """Return the beats, and for each rank without one its last, or one of the moment of the start."""
    known = {beat.rank for beat in beats}
    missing = [rank for rank in ranks if rank not in known]
    return [*beats, *(last.get(rank, Beat(rank, NOBODY, "start", 0, started_s)) for rank in missing)]


def is_running(pid: int) -> bool:
    return _state(pid) not in ENDED


def is_stopped(pid: int) -> bool:
    """Return whether a signal (SIGSTOP) or a debugger holds a process."""
    return _state(pid) in STOPPED


def _state(pid: int) -> str:
    """Return the letter by which the kernel says what a process does; empty where there is none."""
    if pid == NOBODY:
        return ""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return status.partition("State:")[2].strip()[:1]


def report_hang(hang: Hang, beats: Sequence[Beat], texts: dict[int, str], *, num_nodes: int = 1) -> str:
    """Return what is printed about a hang: the culprit first, then where every rank is."""
    who = hang.culprit
    lines = [
        f"rank {who.rank} shows no progress for {hang.silence_s:.0f} s in phase {who.phase}, step {who.step} "
        f"(limit {hang.limit_s:.0f} s){HELD if hang.is_stopped else ''}; the run is ended"
    ]
    if num_nodes > 1 and len({(beat.phase, beat.step) for beat in beats}) == 1:
        lines.append(
            "all ranks of this node are at the same place: see what the other nodes say, and the link"
        )
    lines += [f"  rank {beat.rank}: phase {beat.phase}, step {beat.step}, pid {beat.pid}" for beat in beats]
    return "\n".join([*lines, *shown(texts)])


def shown(texts: dict[int, str]) -> list[str]:
    """Return the lines of all stacks, the end of each, where the main thread is."""
    return [
        line
        for rank, text in texts.items()
        for line in (f"stacks of rank {rank}:", *text.splitlines()[-STACK_LINES:])
    ]
