"""A process of its own that watches the ranks of a run: it names the one that hangs, dies or falls behind.

The first cause is printed first and once, then the stacks of all ranks, and the whole group is ended, so that no
orphan stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from swiftlet import heartbeat
from swiftlet.hang import (
    NOBODY,
    Hang,
    Pace,
    blame,
    find_hang,
    is_running,
    is_stopped,
    report_hang,
    shown,
    with_missing,
)
from swiftlet.heartbeat import Beat, End
from swiftlet.log import tell, warning
from swiftlet.stopping import AT_ONCE, is_repeated, leave_closed_terminal, stop_signals

STACKS_WAIT_S = 1.0
SILENT = "(no answer)"
GRACE_S = 5.0
ENDING_S = 30.0
POLL_S = 0.1
GO_ON = "--resume_from_checkpoint auto goes on from the last checkpoint"


def stacks(folder: Path, beats: Sequence[Beat]) -> dict[int, str]:
    """Ask every rank for the stacks of its threads and return them by rank."""
    beats = [beat for beat in beats if beat.pid != NOBODY]
    for beat in beats:
        _signal(beat.pid, heartbeat.SHOW_STACKS)
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


def end_group(process: subprocess.Popen[bytes], folder: Path, *, grace_s: float = GRACE_S) -> None:
    """End the launcher and every process of the run: first by request, then by force."""
    if grace_s:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s)
    until = time.monotonic() + GRACE_S
    seen: set[int] = set()
    while (left := members(folder)) and time.monotonic() < until:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        seen.update(left)
        process.poll()
        time.sleep(0.05)
    # What ends gives up its environment before its files and ports, which a restart needs.
    until = time.monotonic() + ENDING_S
    while any(pid != process.pid and is_running(pid) for pid in seen) and time.monotonic() < until:
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=ENDING_S)


def watch(
    command: Sequence[str],
    *,
    folder: Path,
    environ: dict[str, str],
    ranks: Sequence[int],
    hang_timeout_s: float | None,
    num_nodes: int = 1,
    go_on: str = GO_ON,
) -> int:
    """Run the launcher's command under watch and return the exit code of the run.

    The signals that ask for a stop are passed on to the ranks, which save at the next step and leave. The second one
    ends all at once, as does SIGQUIT (Ctrl-\\): a rank that waits for another in a collective cannot hear it.

    Args:
        ranks: the ranks of this node, which must all show themselves.
        go_on: what to type after an end without a word of the ranks; empty for a command that keeps no checkpoints.
    """
    environ = {**environ, heartbeat.VARIABLE: str(folder)}
    process = subprocess.Popen(list(command), env=environ, start_new_session=True)
    asked: list[int] = []
    pass_on = _passing(folder, process, asked, len(ranks))
    old = {number: signal.signal(number, pass_on) for number in (*stop_signals(), AT_ONCE)}
    pace, started_s = Pace(hang_timeout_s), time.monotonic()
    texts: dict[int, str] = {}
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            pace.look(time.monotonic())
            if len(asked) > 1 or AT_ONCE in asked:
                end_group(process, folder, grace_s=0.0)
                tell(_ended_at_once(asked, go_on))
                return 128 + asked[-1]
            beats = with_missing(heartbeat.read_beats(folder), ranks, started_s, pace.last)
            is_new = pace.see(beats)
            hang = find_hang(beats, pace, time.monotonic())
            if hang is not None and not heartbeat.takes_signs(folder):
                pace.excused_s = time.monotonic()  # who cannot be heard is not silent
            elif hang is not None:
                _tell_hang(hang, beats, folder, num_nodes)
                end_group(process, folder)
                tell(go_on, end="\n" if go_on else "")
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
    code = tell_end(ends, process.returncode, asked, pace.gone)
    lines = shown({rank: text for rank, text in texts.items() if text != SILENT})
    lines += [go_on] if go_on and not asked else []
    is_told = next((end.is_of_ours for end in ends if end.exit_code), False)
    if code and lines and not is_told:
        tell("\n".join(lines))
    return code


def _ended_at_once(asked: Sequence[int], go_on: str) -> str:
    second = ", the second one" if len(asked) > 1 else ""
    return f"ended at once by signal {asked[-1]}{second}{go_on and f'; {go_on}'}"


def _tell_hang(hang: Hang, beats: Sequence[Beat], folder: Path, num_nodes: int) -> None:
    stopped = [beat.rank for beat in beats if is_stopped(beat.pid)]  # stacks() lets them go on
    texts = stacks(folder, beats)
    hang = blame(hang, beats, texts, time.monotonic(), stopped)
    warning(report_hang(hang, beats, texts, num_nodes=num_nodes))


def _passing(
    folder: Path, process: subprocess.Popen[bytes], asked: list[int], num_ranks: int
) -> Callable[[int, object], None]:
    def pass_on(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
        if is_repeated(number, asked[0] if asked else 0):
            return
        asked.append(number)
        if len(asked) > 1 or number == AT_ONCE:
            return
        beats = heartbeat.read_beats(folder)
        for beat in beats:
            _signal(beat.pid, number)
        if len(beats) < num_ranks:
            _signal(process.pid, signal.SIGTERM)

    return pass_on


def tell_end(
    ends: Sequence[End], launcher_code: int, asked: Sequence[int] = (), gone: Sequence[Beat] = ()
) -> int:
    """Print what the rank that failed first said, the first cause, once; return its exit code.

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
        tell("\n".join(lines))
        # Neither killed nor told by us: else what the others say is known to be a consequence.
        if first.time_s and not first.is_of_ours:
            from swiftlet.doctor.failure import explain_failure  # of a failed run alone: its tables take time

            text = explain_failure({end.rank: end.message for end in failed}, os.environ, pids)
            tell(text, end="\n" if text else "")
        return first.exit_code
    if launcher_code and asked:
        tell(f"stopped by signal {asked[0]}")
        return 128 + asked[0]
    if launcher_code:
        first_gone = f"rank {gone[0].rank} in phase {gone[0].phase}, step {gone[0].step}" if gone else "all"
        warning(
            f"the run ended without a word: {first_gone} first; its launcher's exit code is {launcher_code}"
        )
    return heartbeat.FAILED if launcher_code else 0
