"""Which rank to look at first: who is waited for, not who reports.

A rank that reports a time-out names the one it waits for. Following that from rank to rank ends at one that waits
for nobody, which failed or is slow, or comes back to where it began, which is the network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from swiftlet.doctor.logs import Line

NOBODY = {"4294967295", "unknown", "-1", ""}
OWN = re.compile(r"\brankId\[(\d+)|\bRankID:(\d+)|\blocalRank:(\d+)")
AWAITED = re.compile(r"remote ?rank:? ?\[?(\d+)\]?", re.IGNORECASE)
GROUP = re.compile(r"\bgroup:\[(group_\w+)\]")
CREATION = re.compile(r"\[Timeout\].*-localUserrank\[(\d+)\].*-remoteUserrank\[(\d+)\]")
ADDRESS = r"\|\s*[\d.:a-f]+\((\d+)\)\s*(?:\|\s*\d+\s*)?"  # newer tables have a column of ports
LINK = re.compile(ADDRESS * 2 + r"\|\s*(?:client|server)\s*\|")


class Wait(NamedTuple):
    """One rank that says that it waits for another."""

    rank: str
    other: str
    line: Line


class Blame(NamedTuple):
    """What the waits of all ranks say: the one at the end of the chain, or those of a circle."""

    rank: str | None = None
    circle: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


def find_waits(lines: Sequence[Line]) -> list[Wait]:
    """Return who says that it waits for whom, each pair once."""
    found: dict[tuple[str, str], Wait] = {}
    for line in lines:
        for rank, other in _pairs(line):
            if other not in NOBODY and rank != other:
                found.setdefault((rank, other), Wait(rank, other, line))
    return list(found.values())


def _pairs(line: Line) -> list[tuple[str, str]]:
    link = LINK.search(line.text)
    if link:
        return [(link[2], link[1])]
    creation = CREATION.search(line.text)
    if creation:
        return [(creation[1], creation[2])]
    found = AWAITED.search(line.text)
    if not found:
        return []
    own = OWN.search(line.text)
    rank = next((group for group in own.groups() if group), None) if own else line.rank
    return [(rank if rank is not None else line.place, found[1])]


def blame(waits: Sequence[Wait]) -> Blame:
    """Follow the waits to their end."""
    after: dict[str, list[str]] = {}
    for wait in waits:
        after.setdefault(wait.rank, []).append(wait.other)
    for first in after:
        circle = _circle(first, after)
        if circle:
            return Blame(None, circle, tuple(after))
    ends = Counter(wait.other for wait in waits if wait.other not in after)
    if not ends:
        return Blame()
    guilty = ends.most_common(1)[0][0]
    theirs = [wait for wait in waits if wait.other == guilty]
    group = GROUP.search(theirs[0].line.text)  # its ranks count from 0 within the group
    name = f"{guilty} of {group[1]}" if group else guilty
    return Blame(name, (), tuple(dict.fromkeys(wait.rank for wait in theirs)))


def _circle(first: str, after: dict[str, list[str]]) -> tuple[str, ...]:
    path = [first]
    while path[-1] in after:
        following = after[path[-1]][0]
        if following in path:
            return tuple(path[path.index(following) :])
        path.append(following)
    return ()
