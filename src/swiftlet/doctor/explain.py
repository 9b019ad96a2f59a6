"""From the lines of a log to its first cause: the deepest that a line shows, then the earliest.

A cause comes from patterns (`causes.json`) or from a code that tells its cause by itself (`codes.json`). Where only
codes are found that hide their cause, nothing is guessed: the explanation has no cause and says what is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from swiftlet.doctor.blame import Blame, blame, find_waits
from swiftlet.doctor.collectives import describe_unequal, find_calls, find_unequal
from swiftlet.doctor.logs import Line, Text
from swiftlet.doctor.tables import Cause, Code, Tables

UNITS = {"": 1.0, "K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}
OTHERS_SHARE, FRAGMENTED_SHARE = 0.15, 0.10


class Match(NamedTuple):
    """A cause, the line that shows it, and what the line says of it."""

    cause: Cause
    line: Line
    at: int
    fields: Mapping[str, str | None]


class Symptom(NamedTuple):
    """A code of the log, at its first place."""

    kind: str
    code: str
    known: Code
    line: Line
    at: int


@dataclass
class Explanation:
    """What a log shows; `first` is None when it does not show the cause."""

    first: Match | None
    others: list[Match] = field(default_factory=list)
    symptoms: list[Symptom] = field(default_factory=list)
    blame: Blame = Blame()
    excerpt: list[Line] = field(default_factory=list)


def explain(lines: Sequence[Line], tables: Tables) -> Explanation:
    """Return the first cause of a log, what else it shows, and which rank to look at."""
    text = Text(lines)
    found = _find_causes(text, tables)
    symptoms = _find_symptoms(text, tables)
    found += [_as_match(one) for one in symptoms if not one.known.hides]
    who = blame(find_waits(text.lines))
    found += _across_ranks(text.lines, tables, who)
    found.sort(key=lambda match: (match.cause.depth, _moment(match.line), match.at))
    distinct: dict[str, Match] = {}
    for match in found:
        distinct.setdefault(match.cause.id, match)
    ranked = list(distinct.values())
    first = ranked[0] if ranked else None
    at = first.at if first else symptoms[0].at if symptoms else None
    excerpt = text.lines[at : at + 3] if at is not None else []
    return Explanation(first, ranked[1:], symptoms, who, excerpt)


def _moment(line: Line) -> float:
    return line.time_s if line.time_s is not None else float("inf")


def _find_causes(text: Text, tables: Tables) -> list[Match]:
    """Return the first line of each cause that has one."""
    found = []
    for cause in tables.causes.values():
        hits = [hit for pattern in cause.match for hit in text.hits(pattern)]
        if not hits or not all(text.has(pattern) for pattern in cause.also):
            continue
        if any(text.has(pattern) for pattern in cause.unless):
            continue
        at, hit = min(hits, key=lambda one: (_moment(text.lines[one[0]]), one[0]))
        match = Match(cause, text.lines[at], at, hit.groupdict())
        found.append(_memory(match, tables) if "allocated" in match.fields else match)
    return found


def _gib(text: str | None) -> float:
    found = re.match(r"([\d.]+) ?([KMGT]?)", text or "")
    return float(found[1]) * UNITS[found[2]] if found else 0.0


def _memory(match: Match, tables: Tables) -> Match:
    """Say who has the memory: others, gaps between this process's own pieces, or the process itself."""
    total, free, reserved, allocated = (
        _gib(match.fields[name]) for name in ("total", "free", "reserved", "allocated")
    )
    others = total - free - reserved
    which = "memory.own"
    if others > OTHERS_SHARE * total:
        which = "memory.others"
    elif reserved - allocated > FRAGMENTED_SHARE * total:
        which = "memory.fragments"
    fields = {**match.fields, "others": f"{others:.1f} GiB"}
    return match._replace(cause=tables.causes[which], fields=fields)


def _find_symptoms(text: Text, tables: Tables) -> list[Symptom]:
    """Return every known code at its first place."""
    found: dict[tuple[str, str], Symptom] = {}
    for kind, pattern in tables.find:
        for at, hit in text.hits(pattern):
            known = tables.code(kind, hit[1])
            if known and (kind, hit[1]) not in found:
                found[kind, hit[1]] = Symptom(kind, hit[1], known, text.lines[at], at)
    return sorted(found.values(), key=lambda one: (_moment(one.line), one.at))


def _as_match(symptom: Symptom) -> Match:
    known = symptom.known
    cause = Cause(f"code.{symptom.code}", known.depth, known.words, known.remedy)
    return Match(cause, symptom.line, symptom.at, {})


def _across_ranks(lines: Sequence[Line], tables: Tables, who: Blame) -> list[Match]:
    """Return the causes that only several ranks together show."""
    found = []
    unequal = find_unequal(find_calls(lines))
    if unequal:
        one, other = unequal
        both = f"{one.rank}, {other.rank}"
        fields: dict[str, str | None] = {
            "index": one.index,
            "what": describe_unequal(one, other),
            "ranks": both,
        }
        cause = tables.causes["collective.unequal_operation"]
        found.append(Match(cause, one.line, _index(lines, one.line), fields))
    if who.circle:
        wait = next(wait for wait in find_waits(lines) if wait.rank in who.circle)
        circle = " -> ".join([*who.circle, who.circle[0]])
        cause = tables.causes["collective.links_cycle"]
        found.append(Match(cause, wait.line, _index(lines, wait.line), {"what": circle}))
    return found


def _index(lines: Sequence[Line], wanted: Line) -> int:
    return next(at for at, line in enumerate(lines) if line is wanted)
