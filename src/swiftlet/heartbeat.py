"""Signs of life of each rank, in files that the watchdog of another process reads.

Off and free unless `SWIFTLET_HEARTBEAT_DIR` is set, which the launcher does. A rank writes where it is (phase and
step) to `rank-N.json`, its last words to `rank-N.end.json`, and on SIGUSR1 the stacks of its threads to
`rank-N.stacks` (by a C handler, so a rank that holds the interpreter lock answers too).
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

VARIABLE = "SWIFTLET_HEARTBEAT_DIR"
PHASES = ("start", "tokenise", "load", "init", "step", "eval", "save", "end")


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


def _folder() -> Path | None:
    text = os.environ.get(VARIABLE)
    return Path(text) if text else None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _write(path: Path, content: dict[str, object]) -> None:
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(path)


def beat(phase: str, step: int = 0) -> None:
    """Say that this rank is alive, in which phase and at which step."""
    folder = _folder()
    if folder is None:
        return
    here = Beat(_rank(), os.getpid(), phase, step, time.time())
    _write(folder / f"rank-{here.rank}.json", here._asdict())


def end(exit_code: int, message: str = "") -> None:
    """Leave the last words of this rank."""
    folder = _folder()
    if folder is not None:
        words = End(_rank(), exit_code, message, time.time())
        _write(folder / f"rank-{words.rank}.end.json", words._asdict())


def is_watched() -> bool:
    """Return whether a watchdog reads the signs of this process, and prints its last words."""
    return _folder() is not None


@contextmanager
def answering() -> Iterator[None]:
    """Write the stacks of all threads when the watchdog asks with SIGUSR1; leave last words for a bug of ours."""
    folder = _folder()
    if folder is None:
        yield
        return
    former = sys.excepthook
    sys.excepthook = _say_last_words
    with (folder / f"rank-{_rank()}.stacks").open("w", encoding="utf-8") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            if sys.exc_info()[0] is None:
                sys.excepthook = former


def _say_last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of the rank that failed first; the others fail because it is gone, and say no more."""
    folder = _folder()
    is_first = folder is None or not any(words.exit_code for words in read_ends(folder))
    end(1, f"{kind.__name__}: {error}")
    if is_first:
        sys.__excepthook__(kind, error, trace)


def read_beats(folder: Path) -> list[Beat]:
    """Return the last beat of each rank that has given one, in the order of ranks."""
    return sorted(Beat(**json.loads(path.read_text("utf-8"))) for path in folder.glob("rank-*[0-9].json"))


def read_ends(folder: Path) -> list[End]:
    """Return the last words of the ranks that left some, the earliest first."""
    words = [End(**json.loads(path.read_text("utf-8"))) for path in folder.glob("rank-*.end.json")]
    return sorted(words, key=lambda word: word.time_s)
