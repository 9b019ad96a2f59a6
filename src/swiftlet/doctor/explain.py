"""From the lines of a log to its first cause: the deepest that a line shows, then the earliest.

A cause comes from patterns (`causes.json`) or from a code that tells its cause by itself (`codes.json`). Where only
codes are found that hide their cause, nothing is guessed: the explanation has no cause and says what is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from swiftlet.doctor.blame import Blame, Wait, blame, find_waits
from swiftlet.doctor.collectives import (
    describe_unequal,
    find_calls,
    find_missing,
    find_super_pods,
    find_unequal,
)
from swiftlet.doctor.exceptions import LONGEST_MESSAGE, Raised, find_raised
from swiftlet.doctor.levels import ERROR
from swiftlet.doctor.logs import Line
from swiftlet.doctor.memory import who_has_memory
from swiftlet.doctor.tables import CHILD_DEPTH, STOPPED_DEPTH, WAIT_DEPTH, WAITING_DEPTH, Cause, Code, Tables
from swiftlet.doctor.text import Text

# When the ranks heard of a failure, which one line tells of several.
ARRIVAL = re.compile(r"Arrival Time: ?\[\w{3} (\w{3} +\d+ [\d:]+ \d{4})\]")

ENDS = {"Killed": "memory.host_killed"}  # crashes of which more is known
SIGN = "sign"  # words that only tell that something has ended or failed: they come after all codes
LONGEST_BEFORE = 60  # characters before a code that tell that it is one


class Match(NamedTuple):
    """A cause, the line that shows it, and what the line says of it."""

    cause: Cause
    line: Line
    at: int
    fields: Mapping[str, str | None]
    grade: int = 0
    moment: float = 0.0

    @property
    def order(self) -> tuple[int, int, float, int]:
        """Return what is compared: errors before warnings, then what is nearer to the root, then what is earlier."""
        return self.grade, self.cause.depth, self.moment, self.at


class Symptom(NamedTuple):
    """A code of the log, at its first place."""

    kind: str
    code: str
    known: Code
    line: Line
    at: int
    shown: str  # as logs write it

    @property
    def order(self) -> tuple[int, bool, float, int]:
        """Return what is compared: errors before warnings, codes before mere signs, then what is earlier."""
        return self.line.grade, self.kind == SIGN, _moment(self.line), self.at


@dataclass
class Explanation:
    """What a log shows; `first` is None when it does not show the cause."""

    first: Match | None
    others: list[Match] = field(default_factory=list)
    symptoms: list[Symptom] = field(default_factory=list)
    blame: Blame = Blame()
    excerpt: list[Line] = field(default_factory=list)
    raised: Raised | None = None  # the first exception, where the cause is not shown
    near: list[Line] = field(default_factory=list)  # of the same process, just below and above the excerpt
    only_rank: str | None = None  # of all lines that say one


def explain(lines: Sequence[Line], tables: Tables) -> Explanation:
    """Return the first cause of a log, what else it shows, and which rank to look at."""
    text = Text(lines)
    symptoms = _find_symptoms(text, tables)
    found = _find_causes(text, tables, symptoms)
    told = {code for match in found for code in match.cause.codes}
    found += [_as_match(one) for one in symptoms if not one.known.hides and one.code not in told]
    waits = find_waits(text.lines)
    who = blame(waits)
    found += _across_ranks(text.lines, tables, who, waits)
    raised = find_raised(text.lines, tables.runtime_errors)
    found += _own_exceptions(raised, found, symptoms, tables)
    if missing := find_missing(text.lines):
        found = [_with_missing(match, missing) for match in found]
    found.sort(key=lambda match: match.order)
    ranked = _distinct(found)
    first = _first(ranked, raised, symptoms)
    others = ranked[1:] if first else ranked
    quoted = next(iter(raised), None) if first is None else None
    at = first.at if first else symptoms[0].at if symptoms else quoted.at if quoted else text.first_error()
    around = text.excerpt(at), quoted, text.near(at), text.only_rank
    return Explanation(first, others, symptoms, who, *around)


def _distinct(found: Sequence[Match]) -> list[Match]:
    """Return each cause once, and of those of one kind that one line shows only the first, which says most."""
    kept: dict[str, Match] = {}
    lines: set[tuple[str, int]] = set()
    for match in found:
        kind = match.cause.id.partition(".")[0]
        if match.cause.id not in kept and (kind, match.at) not in lines:
            kept[match.cause.id] = match
            lines.add((kind, match.at))
    return list(kept.values())


def _first(ranked: Sequence[Match], raised: Sequence[Raised], symptoms: Sequence[Symptom]) -> Match | None:
    """Return the first cause: of warnings only one that no step followed, and only as probable, without an error."""
    if not ranked or ranked[0].grade > 1:
        return None
    if ranked[0].grade == 0:
        return None if _only_says_ended(ranked[0], raised, symptoms) else ranked[0]
    return None if raised else ranked[0]._replace(cause=replace(ranked[0].cause, is_likely=True))


def _only_says_ended(match: Match, raised: Sequence[Raised], symptoms: Sequence[Symptom]) -> bool:
    """Return whether a cause only says that a process ended, and an error tells why it failed, if not its cause."""
    errors = [one.at for one in raised if not one.is_crash]
    errors += [one.at for one in symptoms if one.known.hides and one.kind != SIGN and one.line.grade == 0]
    if match.cause.depth >= CHILD_DEPTH:
        return bool(errors)
    return match.cause.depth == STOPPED_DEPTH and any(at < match.at for at in errors)


def _own_exceptions(
    raised: Sequence[Raised], found: Sequence[Match], symptoms: Sequence[Symptom], tables: Tables
) -> list[Match]:
    """Return the exceptions of the program itself that do not follow from another error of the same process."""
    symptoms = [one for one in symptoms if one.kind != SIGN]
    hidden = [(one.line, one.at) for one in symptoms if one.known.hides]
    told = [(one.line, one.at) for one in found]
    before = hidden + [
        (one.line, one.at)
        for one in found
        if one.cause.depth < WAITING_DEPTH and one.grade == 0 and one.line.level == ERROR
    ]
    elsewhere = {one.line.who for one in symptoms if one.known.hides}
    elsewhere |= {one.line.who for one in found if one.grade == 0 and one.cause.depth <= WAIT_DEPTH}
    own = []
    ended: set[str] = set()
    for one in raised:
        who = one.line.who
        if one.is_crash:
            follows = who in ended or any(one.is_told_by(line, at) for line, at in hidden + told)
        else:
            follows = any(line.who == who and at <= one.at for line, at in before)
            follows |= one.is_open and (who in elsewhere or any(at == one.at for _, at in told))
        ended.add(who)
        if one.is_own and not follows:
            cause = tables.causes[
                ENDS.get(one.text, "program.crash") if one.is_crash else "program.exception"
            ]
            own.append(_match(cause, one.line, one.at, {"what": one.text, "where": one.where}))
    return own


def _match(cause: Cause, line: Line, at: int, fields: Mapping[str, str | None]) -> Match:
    return Match(cause, line, at, fields, line.grade, _moment(line))


def _moment(line: Line) -> float:
    return line.time_s if line.time_s is not None else float("inf")


def _arrival(hit: re.Match[str]) -> float | None:
    found = ARRIVAL.search(hit[0])
    try:
        moment = datetime.strptime(found[1], "%b %d %H:%M:%S %Y") if found else None
    except ValueError:
        return None
    return (moment - datetime(1970, 1, 1)).total_seconds() if moment else None


def _find_causes(text: Text, tables: Tables, symptoms: Sequence[Symptom]) -> list[Match]:
    """Return the first line of each cause that has one."""
    found = []
    for cause in tables.causes.values():
        hits = [
            *_hits(text, cause),
            *(_match(cause, one.line, one.at, {}) for one in symptoms if one.code in cause.codes),
        ]
        if not hits or not all(text.has(pattern) for pattern in cause.also):
            continue
        if any(text.has(pattern) for pattern in cause.unless):
            continue
        hits.sort(key=lambda match: match.order)
        # One failure is told in several lines, and not all of them say everything.
        said: dict[str, str | None] = {}
        for hit in hits:
            if hit.line.who == hits[0].line.who or _continues(hit, hits[0]):
                said |= {name: value for name, value in hit.fields.items() if value and name not in said}
        if said.get("module"):
            said["package"] = tables.packages.get(said["module"] or "", said["module"])
        match = hits[0]._replace(fields=said)
        if "allocated" in match.fields:
            which, fields = who_has_memory(match.fields)
            # Where what to do depends on the device.
            of_device = which + cause.id.removeprefix("memory.torch")
            match = match._replace(cause=tables.causes.get(of_device, tables.causes[which]), fields=fields)
        found.append(match)
    return found


def _continues(hit: Match, first: Match) -> bool:
    """Return whether a line is of the message of another one that alone tells its rank."""
    is_near = 0 < hit.at - first.at < LONGEST_MESSAGE
    return is_near and hit.line.rank is None and hit.line.source == first.line.source


def _hits(text: Text, cause: Cause) -> list[Match]:
    found = []
    for patterns, least in ((cause.match, 0), (cause.warns, 1)):
        for at, hit in (one for pattern in patterns for one in text.hits(pattern)):
            match = _match(cause, text.lines[at], at, hit.groupdict())
            moment = _arrival(hit)
            found.append(
                match._replace(
                    grade=max(match.grade, least), moment=match.moment if moment is None else moment
                )
            )
    return found


def _find_symptoms(text: Text, tables: Tables) -> list[Symptom]:
    """Return every known code at its first place, warnings last."""
    found: dict[tuple[str, str], Symptom] = {}
    codes: dict[tuple[str, str], Code | None] = {}
    for spelling in tables.find:
        kind, before = spelling.kind, spelling.before
        for at, hit in text.hits(spelling.pattern):
            code = spelling.code(hit[1])
            if (kind, code) not in codes:
                codes[kind, code] = tables.code(kind, code)
            known = codes[kind, code]
            if known is None:
                continue
            line, earlier = text.lines[at], found.get((kind, code))
            if earlier and earlier.order <= (line.grade, kind == SIGN, _moment(line), at):
                continue
            start = max(0, hit.start() - LONGEST_BEFORE)
            if before is None or before.search(text.joined, start, hit.start()):
                words = spelling.shown.format(code=code, text=hit[0])
                found[kind, code] = Symptom(kind, code, known, line, at, words)
    return sorted(found.values(), key=lambda one: one.order)


def _as_match(symptom: Symptom) -> Match:
    known = symptom.known
    cause = Cause(f"code.{symptom.code}", known.depth, known.words, known.remedy)
    return _match(cause, symptom.line, symptom.at, {})


def _across_ranks(lines: Sequence[Line], tables: Tables, who: Blame, waits: Sequence[Wait]) -> list[Match]:
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
        found.append(_match(cause, one.line, _index(lines, one.line), fields))
    pods = find_super_pods(lines)
    if pods:
        line, what = pods
        found.append(
            _match(tables.causes["collective.super_pods"], line, _index(lines, line), {"what": what})
        )
    if who.circle:
        wait = next(wait for wait in waits if wait.rank in who.circle and wait.group == who.group)
        circle = " -> ".join([*who.circle, who.circle[0]])
        cause = tables.causes["collective.waits_cycle" if wait.is_connected else "collective.links_cycle"]
        found.append(_match(cause, wait.line, _index(lines, wait.line), {"what": circle}))
    return found


def _with_missing(match: Match, missing: str) -> Match:
    is_open = match.cause.id == "collective.rootinfo" and not match.fields.get("ranks")
    return match._replace(fields={**match.fields, "ranks": missing}) if is_open else match


def _index(lines: Sequence[Line], wanted: Line) -> int:
    return next(at for at, line in enumerate(lines) if line is wanted)
