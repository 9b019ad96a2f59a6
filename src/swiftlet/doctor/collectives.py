"""Ranks that ran unequal collectives at the same place, as the logs of several ranks together show it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from swiftlet.doctor.logs import Line

OPERATION = re.compile(r"\btag\[([A-Za-z]+)_")
GROUP = re.compile(r"\bgroup:\[([^\]]+)\]")
RANK = re.compile(r"\brankId\[(\d+)")
DATA = re.compile(r"\bindex\[(\d+)\], ?count\[(\d+)\].*\bdataType\[(\w+)\]")

# What the first rank says of those that came: how many it needs, and their numbers, in lines of several.
NEEDED = re.compile(r"need connect rankNum is \[(\d+)\]|HcclCommInitRootInfo\w* failed\b.*\brankNum\[(\d+)\]")
CAME = re.compile(r"connected rankinfo\[LINE \d+\]: ?((?:\[\d+\][,;]? ?)+)")
MOST_MISSING = 16  # more are no names to look at
SUPER_POD = re.compile(r"logicSuperPodId\[(\w+)\], ?phySuperPodId\[(\w+)\]")


@dataclass
class Call:
    """A collective that did not end on one rank."""

    line: Line
    operation: str = ""
    group: str = ""
    rank: str = ""
    index: str = ""
    count: str = ""
    type: str = ""


def find_calls(lines: Sequence[Line]) -> list[Call]:
    """Return the last collective of each process of which a log tells operation, rank and index."""
    calls: dict[str, Call] = {}
    for line in lines:
        if "opData information" not in line.text and "information" not in line.text:
            continue
        call = calls.setdefault(f"{line.source}:{line.process}", Call(line))
        for pattern, name in ((OPERATION, "operation"), (GROUP, "group"), (RANK, "rank")):
            found = pattern.search(line.text)
            if found:
                setattr(call, name, found[1])
        data = DATA.search(line.text)
        if data:
            call.index, call.count, call.type = data.groups()
    return [call for call in calls.values() if call.operation and call.rank and call.index]


def find_unequal(calls: Sequence[Call]) -> tuple[Call, Call] | None:
    """Return two ranks of one group that differ at the same index."""
    for at, one in enumerate(calls):
        for other in calls[at + 1 :]:
            same_place = one.index == other.index and one.group == other.group and one.rank != other.rank
            if same_place and (one.operation, one.count, one.type) != (
                other.operation,
                other.count,
                other.type,
            ):
                return one, other
    return None


def describe_unequal(one: Call, other: Call) -> str:
    """Return what two ranks did in words."""
    return "; ".join(
        f"rank {call.rank}: {call.operation}, {call.count} x {call.type}"
        for call in sorted((one, other), key=lambda call: int(call.rank))
    )


def find_missing(lines: Sequence[Line]) -> str:
    """Return the ranks that never came to the first one, as it tells who came; empty where it does not.

    Where it does not tell how many it needs, those are known that lie between others.
    """
    needed, came = 0, set()
    for line in lines:
        if "rank" not in line.text:
            continue
        count, ranks = NEEDED.search(line.text), CAME.search(line.text)
        needed = int(count[1] or count[2]) if count else needed
        came |= {int(rank) for rank in re.findall(r"\d+", ranks[1])} if ranks else set()
    missing = (
        [str(rank) for rank in range(needed or max(came, default=0)) if rank not in came] if came else []
    )
    return ",".join(missing) if len(missing) <= MOST_MISSING else ""


def find_super_pods(lines: Sequence[Line]) -> tuple[Line, str] | None:
    """Return the line that shows it, and the physical super pods that were given one logical one."""
    physical: dict[str, list[str]] = {}
    for line in lines:
        found = SUPER_POD.search(line.text) if "SuperPod" in line.text else None
        if found and found[2] not in physical.setdefault(found[1], []):
            physical[found[1]].append(found[2])
            if len(physical[found[1]]) > 1:
                return line, ", ".join(physical[found[1]])
    return None
