"""Logs of one or many ranks as lines with their file, number, rank and time.

Ranks are written in many ways; a line that does not say its own has that of its process, else that of its file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from swiftlet.doctor.levels import ERROR, PLAIN, QUIET, STEP, WARNING, error_head, level_of

LONGEST_LINE = 4096
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[-T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{3})(?:\.(\d{3}))?)?")
# What those who carry a line put before it: `>` of a quoted text, the clock of a container with its stream.
QUOTED = re.compile(r"(?:> ?)+")
CARRIED = re.compile(r"(\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)) (?:(?:stdout|stderr) [FP] )?")
# A bar of progress ends without a line break before what others print next.
BREAK = re.compile(r"\n|\r(?!$)|(?<=it/s\])(?=\S)|(?<=s/it\])(?=\S)")
BREAKS = ("\n", "\r", "it/s]", "s/it]")
TROUBLE = [
    *"err fail exception exit abort kill time cannot refus denied warn invalid traceback".split(),
    'file "',
]
NO_LETTERS = re.compile(r"[^A-Za-z\u4e00-\u9fff]+")
ASCII_NO_LETTERS = {code: None for code in range(128) if not chr(code).isalpha()}
REPEATS, TROUBLE_REPEATS = 3, 100  # lines that differ in figures only: the first ones count
HEADING = re.compile(r"==> (?P<path>\S.*?) <==|^\s*(?P<rank>rank ?\d+) ?[:：]\s*$", re.IGNORECASE)
RANK_AT_HEAD = re.compile(
    # `rank=` further on is as often that of a low-rank adapter.
    r"\W{0,3}[Rr]ank ?(\d+)[:\]]|[^A-Za-z]{0,80}rank=(\d+)|\([^()]*[ ,]rank=(\d+)"
)
# What launchers put before the lines of a rank: torchrun, mpirun, a server that says it with its clock.
CARRIED_RANK = re.compile(
    r"\[(?:default(\d+)\]:|\d+,(\d+)\]<std(?:err|out)>:|[\d-]{10} [\d:.]{8,15}(?: DP\d+)? TP(\d+)\b)"
)
RANK = re.compile(
    r"[Rr]ank(?:(?<=\[[Rr]ank) ?(\d+)\]|(?<=\bRank)ID:(\d+)|(?<=\brank)Id\[(\d+)|(?<=\bRank)\[(\d+)\]"
    r"|(?<=\brank):(\d+), rankSize\b|(?<=\d\] rank)\[(\d+)\])"  # behind its role or device in HCCL's time-outs
)
# A server's workers: one of several groups (DP, PP) is told from the same one of another group by all its names.
WORKER = re.compile(r"(?:\b|Worker_)(?:TP(\d+)|((?:(?:DP|PP|PCP)\d+_)+TP\d+))(?:_[A-Z]+\d+)* pid")
# The head that torch_npu gives a message alone says the rank; the traceback stands above it, the rest below.
HEAD_OF_MESSAGE = re.compile(r"\(PID:\d+, Device:-?\d+, RankID:\d+\) ERR\d{5}\b")
# A record of C++ says the rank in its first line only; what CANN says stands below it.
RECORD = re.compile(r"\[rank(\d+)\]:\[[EFW]\d{3,4} ")
REST_OF_RECORD = re.compile(
    r"\s|\[ERROR\] \d{4}-|\[Error\]|(?:\[PID: ?\d|E[A-Z1-9]\d{4})|Exception raised from |frame #\d"
)
TRACEBACK = "Traceback (most recent call last)"
LAUNCHER = re.compile(r"\btorch[./]distributed[./](?:elastic|run|launcher)\b|\bexitcode\s*:")
LONGEST_BELOW, LONGEST_ABOVE = 12, 400
SUMMARY = re.compile(r"\brank\s*: (\d+) \(local_rank: \d+\)")  # of a launcher: it holds for the lines below
ROOT_CAUSE = "Root Cause (first observed failure)"  # below it stands the one process that did not only follow
SUMMARY_GOES_ON = re.compile(r"\b(?:exitcode|error_file|traceback)\s*: ")

# Where a process enters a group it says its rank there, in lines that only inform.
ENTRY = re.compile(r"\brank(?:s|Num)\[(\d+)\], ?rank\[(\d+)\]")
HEARD = ("HeartbeatAbnormal", "] by rank [")  # CANN's run log only informs of the rank that failed first
PROCESS = re.compile(r"\bPID: ?(\d+)|\b[A-Z]{2,12}\((\d+),|\bpid[= ](\d+)")
PROCESS_WORDS = ("PID:", "(", "pid")
FILE_RANK = re.compile(r"(?<![A-Za-z])(?<!lora[-_])(?<!low[-_])(?<!node[-_])rank[-_ ]?(\d+)", re.IGNORECASE)


@dataclass
class Line:
    """One line of a log; `place` is its rank where that is known, else its process or file."""

    source: str
    number: int
    text: str
    rank: str | None = None
    process: str | None = None
    time_s: float | None = None
    level: int = PLAIN
    is_survived: bool = False  # the same process made further steps

    @property
    def grade(self) -> int:
        """Return 0 for what may be why a run failed, 1 for a warning, 2 for what the run survived."""
        if self.level == ERROR:
            return 0
        return 2 if self.is_survived else int(self.level == WARNING)

    @property
    def who(self) -> str:
        """Return whose log the line is of, as far as it is known for every line."""
        return self.rank if self.rank is not None else self.source

    @property
    def place(self) -> str:
        """Return who says the line."""
        return self.rank if self.rank is not None else f"{self.source}:{self.process or ''}"


@dataclass
class _State:
    """What the lines before say of the next one."""

    source: str
    rank: str | None = None
    time_s: float | None = None
    ranks: dict[str, str] = field(default_factory=dict)
    child: str | None = None  # the rank that a launcher's summary tells of
    steps: dict[tuple[str, str | None], int] = field(default_factory=dict)  # the line of the last step


def lines_of(text: str, source: str = "log") -> list[Line]:
    """Return the lines of one text. A line break that a JSON string holds as backslash and n breaks a line too."""
    return lines_from(enumerate(text.split("\n"), start=1), source)


def lines_from(
    rows: Iterable[tuple[int, str]], source: str, entries: dict[str, set[tuple[int, str]]] | None = None
) -> list[Line]:
    """Return the lines of numbered rows: without those that only inform, and those that many others are like.

    Args:
        rows: with their numbers.
        source: what they are of.
        entries: filled with the groups (their size, and the rank in it) that each process says it enters.
    """
    state = _State(source, rank=_file_rank(source))
    seen: Counter[str] = Counter()
    found: list[Line] = []
    listed: list[Line] = []  # by a launcher, of processes that it ended or that failed later
    for number, row in rows:
        clock, parts = _parts(row)
        for part in parts:
            heading = HEADING.search(part) if "==>" in part or part.rstrip().endswith((":", "：")) else None
            if heading:
                _head(state, heading)
                continue
            if "loss" in part and STEP.search(part):
                state.steps[state.source, _rank(part) or state.rank] = number
            if entries is not None and "rank[" in part:
                _enter(part, entries)
            if not _repeats(part, seen):
                level = level_of(part)
                if level == QUIET and any(word in part for word in HEARD):
                    level = PLAIN
                found += [_line(part.rstrip("\r"), number, state, level, clock)] if level != QUIET else []
                listed += found[-1:] if state.child is not None and level != QUIET else []
            if ROOT_CAUSE in part:
                later = {id(line) for line in listed}
                found, listed = [line for line in found if id(line) not in later], []
    _lend_ranks(found)
    _lend_rank_of_record(found, state.ranks)
    earliest: dict[str, float | None] = {}
    for line in reversed(found):
        line.rank = line.rank if line.rank is not None else state.ranks.get(line.process or "")
        # What stands above the first time stamp of a file happened before it.
        line.time_s = line.time_s if line.time_s is not None else earliest.get(line.source)
        earliest[line.source] = line.time_s
        line.is_survived = line.number < state.steps.get((line.source, line.rank), 0)
    return found


def _lend_ranks(lines: list[Line]) -> None:
    """Give the rank in the head of a message to its other lines, where they say no rank or process of their own."""
    for at, head in enumerate(lines):
        if "RankID:" not in head.text or not HEAD_OF_MESSAGE.search(head.text):
            continue
        above = lines[max(0, at - LONGEST_ABOVE) : at][::-1]
        own = list(takewhile(_says_no_rank, above))
        begin = next((number for number, line in enumerate(own) if TRACEBACK in line.text), 0)
        below = takewhile(_says_no_rank, lines[at + 1 : at + 1 + LONGEST_BELOW])
        for line in [*own[: begin + 1], *takewhile(lambda line: TRACEBACK not in line.text, below)]:
            line.rank = head.rank


def _lend_rank_of_record(lines: list[Line], ranks: dict[str, str]) -> None:
    """Give the rank in the first line of a record of C++ to its other lines, and to the process that they name."""
    for at, head in enumerate(lines):
        if not head.text.startswith("[rank") or not RECORD.match(head.text):
            continue
        for line in lines[at + 1 : at + 1 + LONGEST_BELOW]:
            if line.rank is not None or not REST_OF_RECORD.match(line.text):
                break
            line.rank = head.rank
            if line.process is not None and head.rank is not None:
                ranks.setdefault(line.process, head.rank)


def _says_no_rank(line: Line) -> bool:
    return line.rank is None and line.process is None and LAUNCHER.search(line.text) is None


def _enter(text: str, entries: dict[str, set[tuple[int, str]]]) -> None:
    found, process = ENTRY.search(text), _first(PROCESS.search(text))
    if found and process:
        entries.setdefault(process, set()).add((int(found[1]), found[2]))


def rank_of(entries: set[tuple[int, str]]) -> str | None:
    """Return the rank of a process in the largest group that it entered, which is that of all; None in doubt."""
    size = max(size for size, _ in entries)
    ranks = {rank for of, rank in entries if of == size}
    return ranks.pop() if len(ranks) == 1 else None


def _parts(row: str) -> tuple[str, list[str]]:
    """Return the clock of what carried a row, and its lines; a very long one is cut, as no pattern is so long."""
    row = COLOUR.sub("", row) if "\x1b" in row else row
    quoted = QUOTED.match(row) if row.startswith(">") else None
    row = row[quoted.end() :] if quoted else row
    carried = CARRIED.match(row) if row[10:11] == "T" else None
    clock, row = (carried[1], row[carried.end() :]) if carried else ("", row)
    parts = []
    row = row.replace("\\n", "\n")
    for part in BREAK.split(row) if any(mark in row for mark in BREAKS) else [row]:
        head = error_head(part)  # of a record that lost the line break before it
        parts += [part[:head], part[head:]] if head else [part]
    if len(row) <= LONGEST_LINE:
        return clock, parts
    return clock, [
        part[at : at + LONGEST_LINE] for part in parts for at in range(0, max(len(part), 1), LONGEST_LINE)
    ]


def shape_of(text: str) -> str:
    """Return the letters of a line: those of lines that differ in figures only are equal."""
    return text.translate(ASCII_NO_LETTERS) if text.isascii() else NO_LETTERS.sub("", text)


def _repeats(text: str, seen: Counter[str]) -> bool:
    """Return whether the line is one of many that differ in figures only, such as those of each training step."""
    if "(local_rank: " in text or " exitcode " in text:  # of a launcher's summary, which lists each process
        return False
    shape = shape_of(text)
    seen[shape] += 1
    if seen[shape] <= REPEATS or seen[shape] > TROUBLE_REPEATS:
        return seen[shape] > REPEATS
    lowered = text.lower()
    return not any(word in lowered for word in TROUBLE)


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


def _rank(text: str) -> str | None:
    """Return the rank that a line says it is of; nearly all do not say one, which is seen faster without a pattern."""
    found = CARRIED_RANK.match(text) if text.startswith("[") else None
    if found is None and "ank" in text:
        found = RANK_AT_HEAD.match(text) or RANK.search(text)
    return _first(found or (WORKER.search(text) if "TP" in text and " pid" in text else None))


def _line(text: str, number: int, state: _State, level: int, clock: str) -> Line:
    process = _first(PROCESS.search(text)) if any(word in text for word in PROCESS_WORDS) else None
    summary = SUMMARY.search(text) if " : " in text else None
    goes_on = state.child is not None and SUMMARY_GOES_ON.search(text)
    state.child = summary[1] if summary else state.child if goes_on else None
    rank = state.child or _rank(text)
    if rank is not None and process is not None:
        state.ranks.setdefault(process, rank)
    stamp = TIME.search(clock or text)
    if stamp:
        state.time_s = _seconds(stamp) or state.time_s
    return Line(
        state.source, number, text, rank if rank is not None else state.rank, process, state.time_s, level
    )


def _seconds(stamp: re.Match[str]) -> float | None:
    whole = _whole_seconds(*stamp.groups()[:6])
    return None if whole is None else whole + int(stamp[7] or 0) / 1e3 + int(stamp[8] or 0) / 1e6


@lru_cache(maxsize=1024)
def _whole_seconds(*parts: str) -> float | None:
    """Return the seconds of a clock, which many lines share."""
    year, month, day, hour, minute, second = map(int, parts)
    try:
        return (datetime(year, month, day, hour, minute, second) - datetime(1970, 1, 1)).total_seconds()
    except ValueError:
        return None
