"""Which rank to look at first: who is waited for, not who reports.

A rank that reports a time-out names the one it waits for. Following that from rank to rank ends at one that waits
for nobody, which failed or is slow, or comes back to where it began: the network where they could not connect, else
collectives in unequal order. Ranks of a group count from 0 within it, so a chain stays within its group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from swiftlet.doctor.levels import PLAIN
from swiftlet.doctor.logs import Line

NOBODY = {"4294967295", "unknown", "-1", ""}
OWN = re.compile(r"\brankId\[(\d+)|\bRankID:(\d+)|\blocal ?Rank:? ?\[?(\d+)", re.IGNORECASE)
AWAITED = re.compile(r"remote[ _]?rank:? ?\[?(\d+)\]?", re.IGNORECASE)
# Lines that all went well name the other rank too.
IN_VAIN = re.compile(
    r"time[sd]?[- ]?out|not received|no connect|fail|error|exception|abnormal|\bwait|\bEI\d{4}\b",
    re.IGNORECASE,
)
CONNECTED = re.compile(r"notify", re.IGNORECASE)
GROUP = re.compile(r"\bgroup:\[(group_\w+)\]")
CREATION = re.compile(r"(?i:\[timeout\]|\berror\b|\bfail).*-localUserrank\[(\d+)\].*-remoteUserrank\[(\d+)\]")
ADDRESS = r"\|\s*[\d.:a-f]+\((\d+)\)\s*(?:\|\s*\d+\s*)?"  # newer tables have a column of ports
LINK = re.compile(ADDRESS * 2 + r"\|\s*(?:client|server)\s*\|")


class Wait(NamedTuple):
    """One rank that says that it waits for another, of one group; None is the group of all ranks."""

    rank: str
    other: str
    line: Line
    group: str | None = None

    @property
    def is_connected(self) -> bool:
        """Return whether it waits for what the other sends, and not for the connection."""
        return CONNECTED.search(self.line.text) is not None


class Blame(NamedTuple):
    """What the waits of all ranks say: the one at the end of the chain, or those of a circle in one group."""

    rank: str | None = None
    circle: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    group: str | None = None
    is_connected: bool = False


def find_waits(lines: Sequence[Line]) -> list[Wait]:
    """Return who says that it waits for whom, each pair of a group once."""
    found: dict[tuple[str | None, str, str], Wait] = {}
    for above, line in zip([None, *lines], lines, strict=False):
        for rank, other in _pairs(line, above):
            if other not in NOBODY and rank != other:
                named = GROUP.search(line.text)
                group = named[1] if named else None
                found.setdefault((group, rank, other), Wait(rank, other, line, group))
    return list(found.values())


def _pairs(line: Line, above: Line | None) -> list[tuple[str, str]]:
    # Most lines have no word of this, which is seen faster without a pattern.
    link = LINK.search(line.text) if "|" in line.text else None
    if link:
        return [(link[2], link[1])]
    creation = CREATION.search(line.text) if "Userrank" in line.text else None
    if creation:
        return [(creation[1], creation[2])]
    found = AWAITED.search(line.text) if "emote" in line.text or "EMOTE" in line.text else None
    if not found or not (IN_VAIN.search(line.text) or _goes_on(line, above)):
        return []
    own = OWN.search(line.text)
    rank = next((group for group in own.groups() if group), None) if own else line.rank
    return [(rank if rank is not None else line.place, found[1])]


def _goes_on(line: Line, above: Line | None) -> bool:
    """Return whether a line is the rest of one above that tells of a failure: a terminal or a mail broke it."""
    if above is None or line.level != PLAIN or line.process is not None or line.who != above.who:
        return False
    return IN_VAIN.search(above.text) is not None


def blame(waits: Sequence[Wait]) -> Blame:
    """Follow the waits to their end."""
    groups: dict[str | None, list[Wait]] = {}
    for wait in waits:
        groups.setdefault(wait.group, []).append(wait)
    for group, members in groups.items():
        after: dict[str, str] = {}
        for wait in members:
            after.setdefault(wait.rank, wait.other)
        for first in after:
            circle = _circle(first, after)
            if circle:
                one = next(wait for wait in members if wait.rank in circle)
                return Blame(None, circle, tuple(after), group, one.is_connected)
    ends = [end for group, members in groups.items() if (end := _end(group, members))]
    if not ends:
        return Blame()
    most = max(len(waiting) for _, waiting in ends)
    guilty = [(name, waiting) for name, waiting in ends if len(waiting) == most]
    return Blame(
        ", rank ".join(name for name, _ in guilty),
        (),
        tuple(dict.fromkeys(one for _, many in guilty for one in many)),
    )


def _end(group: str | None, waits: Sequence[Wait]) -> tuple[str, list[str]] | None:
    """Return who is waited for most in a group and waits for nobody, and who waits for it."""
    waiting = {wait.rank for wait in waits}
    ends = Counter(wait.other for wait in waits if wait.other not in waiting)
    if not ends:
        return None
    guilty = ends.most_common(1)[0][0]
    return f"{guilty} of {group}" if group else guilty, [wait.rank for wait in waits if wait.other == guilty]


def _circle(first: str, after: dict[str, str]) -> tuple[str, ...]:
    path = [first]
    while path[-1] in after:
        following = after[path[-1]]
        if following in path:
            return tuple(path[path.index(following) :])
        path.append(following)
    return ()
