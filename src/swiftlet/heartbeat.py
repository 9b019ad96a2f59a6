"""Signs of life of each rank, in files that the watchdog of another process reads.

Off and free unless `SWIFTLET_HEARTBEAT_DIR` is set, which the launcher does. A rank writes where it is (phase and
step) to `rank-N.json`, its last words to `rank-N.end.json`, and on SIGURG the stacks of its threads to
`rank-N.stacks` (by a C handler, so a rank that holds the interpreter lock answers too; where nobody answers yet, the
kernel ignores this signal). Times are of the machine's monotonic clock, which all its processes share: setting the date
does not make a rank look silent. A folder that takes no files costs the watch, never the run.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from swiftlet import log
from swiftlet.files import write_whole
from swiftlet.stopping import STOP_SIGNALS, end_with_parent

VARIABLE = "SWIFTLET_HEARTBEAT_DIR"
FAILED = 1
TICK_S = 5.0
SHOW_STACKS = signal.SIGURG
PROBE, PROBE_BYTES = "probe", 2**16


class Beat(NamedTuple):
    """Where a rank was, and when."""

    rank: int
    pid: int
    phase: str
    step: int
    time_s: float


class End(NamedTuple):
    """The last words of a rank: its exit code and what it said."""

    rank: int
    exit_code: int
    message: str
    time_s: float

    @property
    def is_of_ours(self) -> bool:
        """Whether they are a message of ours: it says the cause and has its hint already."""
        return self.message.startswith("error: ")


_last: Beat | None = None  # of this process
_warned: set[Path] = set()  # folders that did not take a sign of life


def _folder() -> Path | None:
    text = os.environ.get(VARIABLE)
    return Path(text) if text else None


def beat(phase: str, step: int = 0) -> None:
    """Say that this rank is alive, in which phase and at which step."""
    folder = _folder()
    if folder is None:
        return
    global _last
    _last = Beat(log.rank(), os.getpid(), phase, step, time.monotonic())
    try:
        write_whole(folder / f"rank-{_last.rank}.json", json.dumps(_last._asdict()))
    except OSError as error:
        if folder not in _warned:
            log.warning(
                f"no sign of life can be written to {folder}: {error.strerror}; the run goes on unwatched"
            )
        _warned.add(folder)


def tick() -> None:
    """Say that this rank still works where it was, in a phase of many small parts; at most once in five seconds."""
    if _last is not None and time.monotonic() - _last.time_s > TICK_S:
        beat(_last.phase, _last.step)


def end(exit_code: int, message: str = "") -> None:
    """Leave the last words of this rank; what cannot be left is said at once."""
    folder = _folder()
    if folder is None:
        return
    try:
        write_end(folder, End(log.rank(), exit_code, message, time.monotonic()))
    except OSError:
        log.tell(f"rank {log.rank()}: {message}")


def write_end(folder: Path, words: End) -> None:
    """Leave the last words of a rank, or speak for one that could not."""
    write_whole(folder / f"rank-{words.rank}.end.json", json.dumps(words._asdict()))


def killed(rank: int, number: int, folder: Path) -> End:
    """Return last words for a rank that a signal has killed; they come before those of ranks that it took along."""
    beats = [beat for beat in read_beats(folder) if beat.rank == rank]
    where = f"in phase {beats[0].phase}, step {beats[0].step}" if beats else "before its first sign of life"
    is_asked = number in STOP_SIGNALS
    guess = "; a machine that is out of memory does that (see dmesg)" if number == signal.SIGKILL else ""
    message = f"killed by signal {number} ({signal.Signals(number).name}) {where}{guess}"
    return End(rank, 128 + number if is_asked else FAILED, message, 0.0)


def takes_signs(folder: Path) -> bool:
    """Return whether ranks could write their signs of life to a folder; one that was removed is made again."""
    is_there = folder.is_dir()
    try:
        folder.mkdir(exist_ok=True)
        write_whole(folder / PROBE, " " * PROBE_BYTES)
        (folder / PROBE).unlink()
    except OSError:
        return False
    return is_there


def is_watched() -> bool:
    """Return whether a watchdog reads the signs of this process, and prints its last words."""
    return _folder() is not None


@contextmanager
def answering() -> Iterator[None]:
    """Write the stacks of all threads when the watchdog asks with SIGURG; leave a bug's traceback to it too.

    Whoever started this process may be killed; then it is asked to stop instead of training on unwatched.
    """
    folder = _folder()
    if folder is None:
        yield
        return
    end_with_parent()
    former = sys.excepthook
    sys.excepthook = _say_last_words
    with (folder / f"rank-{log.rank()}.stacks").open("w", encoding="utf-8") as file:
        faulthandler.register(SHOW_STACKS, file=file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(SHOW_STACKS)
            if sys.exc_info()[0] is None:
                sys.excepthook = former


def _say_last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Leave the traceback to the watchdog: ranks that fail because another one is gone must not speak before it."""
    end(1, log.redact("".join(traceback.format_exception(kind, error, trace))).rstrip())


def read_beats(folder: Path) -> list[Beat]:
    """Return the last beat of each rank that has given one, in the order of ranks."""
    return sorted(Beat(**json.loads(path.read_text("utf-8"))) for path in folder.glob("rank-*[0-9].json"))


def read_ends(folder: Path) -> list[End]:
    """Return the last words of the ranks that left some, the earliest first."""
    words = [End(**json.loads(path.read_text("utf-8"))) for path in folder.glob("rank-*.end.json")]
    return sorted(words, key=lambda word: word.time_s)
