"""Logs of one or many ranks as lines with their file, number, rank and time.

Ranks are written in many ways; a line that does not say its own has that of its process, else that of its file.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from swiftlet.errors import UsageError

LARGEST_BYTES = 16 << 20  # of a file: the first and the last half of it; the first error and the last words
LONGEST_LINE = 4096
QUIET = re.compile(r"\[(?:INFO|DEBUG|EVENT|TRACE)\]")
# What a message advises in every case: lists of what may be, which must not be taken for what is.
ADVICE = re.compile(r"(?:Possible [Cc]ause|Solution|Suggest)\s*:.*|Reason: ?1\. .*")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[-T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{3})(?:\.(\d{3}))?)?")
TROUBLE = re.compile(
    r"err|fail|exception|exit|abort|kill|time|cannot|refus|denied|warn|invalid", re.IGNORECASE
)
NO_LETTERS = re.compile(r"[^A-Za-z\u4e00-\u9fff]+")
REPEATS, TROUBLE_REPEATS = 3, 100  # lines that differ in figures only: the first ones count
HEADING = re.compile(r"==> (?P<path>\S.*?) <==|^\s*(?P<rank>rank ?\d+) ?[:：]\s*$", re.IGNORECASE)
RANK = re.compile(
    r"\[rank ?(\d+)\]|\[Rank ?(\d+)\]|^\W{0,3}[Rr]ank ?(\d+)[:\]]|\bRankID:(\d+)|\brankId\[(\d+)|\bRank\[(\d+)\]"
    r"|[( ]rank=(\d+)|\bTP(\d+) pid"
)
PROCESS = re.compile(r"\bPID: ?(\d+)|\b[A-Z]{2,12}\((\d+),|\bpid[= ](\d+)")
FILE_RANK = re.compile(r"(?<![A-Za-z])rank[-_ ]?(\d+)", re.IGNORECASE)


@dataclass
class Line:
    """One line of a log; `place` is its rank where that is known, else its process or file."""

    source: str
    number: int
    text: str
    rank: str | None = None
    process: str | None = None
    time_s: float | None = None

    @property
    def place(self) -> str:
        """Return who says the line."""
        return self.rank if self.rank is not None else f"{self.source}:{self.process or ''}"


class Text:
    """Lines joined without their advice, so that a pattern runs over all of them at once."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = list(lines)
        said = [ADVICE.sub("", line.text) for line in self.lines]
        self.starts = list(accumulate((len(text) + 1 for text in said), initial=0))
        self.joined = "\n".join(said)

    def hits(self, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
        """Return each match with the place of its line."""
        for hit in pattern.finditer(self.joined):
            yield bisect_right(self.starts, hit.start()) - 1, hit

    def has(self, pattern: re.Pattern[str]) -> bool:
        """Return whether some line matches."""
        return pattern.search(self.joined) is not None


class Log(NamedTuple):
    """All lines of all files; `notes` say what was left out."""

    lines: list[Line]
    notes: list[str]


@dataclass
class _State:
    """What the lines before say of the next one."""

    source: str
    rank: str | None = None
    time_s: float | None = None
    ranks: dict[str, str] = field(default_factory=dict)


def read_logs(paths: Sequence[str]) -> Log:
    """Return the lines of files, or of all files below folders.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    log = Log([], [])
    for path in _files(paths):
        try:
            text = _head_and_tail(path, log.notes)
        except OSError as error:
            raise UsageError(
                f"--log {path} cannot be read: {error.strerror}", "name a text file, or a folder of them"
            ) from None
        log.lines.extend(lines_of(text, str(path)))
    return log


def process_logs(environ: Mapping[str, str], pid: int) -> list[Path]:
    """Return the logs that the device's software wrote for a process on the host (plog), where it does."""
    named = environ.get("ASCEND_PROCESS_LOG_PATH") or str(Path(environ.get("HOME", "/root")) / "ascend/log")
    return sorted(Path(named).glob(f"**/plog/plog-{pid}_*.log")) if Path(named).is_dir() else []


def _files(paths: Sequence[str]) -> Iterable[Path]:
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise UsageError(f"--log {name}: there is no such file", "name a text file, or a folder of them")
        yield from sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def _head_and_tail(path: Path, notes: list[str]) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= LARGEST_BYTES:
            return file.read().decode("utf-8", "replace")
        head = file.read(LARGEST_BYTES // 2)
        file.seek(size - LARGEST_BYTES // 2)
        tail = file.read()
    notes.append(f"{path}: of {size >> 20} MB the first and last {LARGEST_BYTES >> 21} MB were read")
    return head.decode("utf-8", "replace") + "\n" + tail.decode("utf-8", "replace")


def lines_of(text: str, source: str = "log") -> list[Line]:
    """Return the lines of one text. A line break that a JSON string holds as backslash and n breaks a line too."""
    state = _State(source, rank=_file_rank(source))
    seen: Counter[str] = Counter()
    found = []
    for number, row in enumerate(text.split("\n"), start=1):
        for part in _parts(row):
            heading = HEADING.search(part)
            if heading:
                _head(state, heading)
            elif not QUIET.match(part) and not _repeats(part, seen):
                found.append(_line(part.rstrip("\r"), number, state))
    earliest: dict[str, float | None] = {}
    for line in reversed(found):
        line.rank = line.rank if line.rank is not None else state.ranks.get(line.process or "")
        # What stands above the first time stamp of a file happened before it.
        line.time_s = line.time_s if line.time_s is not None else earliest.get(line.source)
        earliest[line.source] = line.time_s
    return found


def _parts(row: str) -> list[str]:
    """Return the lines that stand in one line of a file; a very long one is cut, as no pattern is so long."""
    parts = COLOUR.sub("", row).replace("\\n", "\n").split("\n")
    return [
        part[at : at + LONGEST_LINE] for part in parts for at in range(0, max(len(part), 1), LONGEST_LINE)
    ]


def _repeats(text: str, seen: Counter[str]) -> bool:
    """Return whether the line is one of many that differ in figures only, such as those of each training step."""
    shape = NO_LETTERS.sub("", text)
    seen[shape] += 1
    return seen[shape] > REPEATS and (seen[shape] > TROUBLE_REPEATS or not TROUBLE.search(text))


def _file_rank(path: str) -> str | None:
    found = FILE_RANK.findall(Path(path).name)
    return found[-1] if found else None


def _head(state: _State, heading: re.Match[str]) -> None:
    if heading["path"]:
        state.source, state.rank = heading["path"], _file_rank(heading["path"])
    else:
        state.rank = re.sub(r"\D", "", heading["rank"])
    state.time_s = None


def _first(match: re.Match[str] | None) -> str | None:
    return next((group for group in match.groups() if group), None) if match else None


def _line(text: str, number: int, state: _State) -> Line:
    process = _first(PROCESS.search(text))
    rank = _first(RANK.search(text))
    if rank is not None and process is not None:
        state.ranks.setdefault(process, rank)
    stamp = TIME.search(text)
    if stamp:
        state.time_s = _seconds(stamp) or state.time_s
    return Line(state.source, number, text, rank if rank is not None else state.rank, process, state.time_s)


def _seconds(stamp: re.Match[str]) -> float | None:
    whole = [int(part) for part in stamp.groups()[:6]]
    try:
        moment = datetime(whole[0], whole[1], whole[2], whole[3], whole[4], whole[5])
    except ValueError:
        return None
    return (
        (moment - datetime(1970, 1, 1)).total_seconds() + int(stamp[7] or 0) / 1e3 + int(stamp[8] or 0) / 1e6
    )
