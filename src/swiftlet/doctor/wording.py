"""An explanation of a log in words of one language, and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from swiftlet.doctor.explain import Explanation, Match
from swiftlet.doctor.logs import Line
from swiftlet.doctor.tables import WAITING_DEPTH, Words, fill

LABELS = {
    "en": {
        "cause": "cause",
        "likely": "probable cause",
        "unknown": "the log does not show the cause",
        "known": "known",
        "rank": "look first at",
        "do": "do",
        "next": "next",
        "shown": "shown by",
        "codes": "codes",
        "also": "also in the log",
        "waited": "rank {rank}, which rank {waiting} waits for",
        "awaited": "rank {rank}, which is waited for",
        "circle": "the network between ranks {circle}, which wait for each other",
        "stuck": "ranks {circle}, which wait for each other",
        "place": "device {place}, which the log itself names",
        "ranks": "ranks {ranks}, which the log itself names",
        "culprit": "rank {culprit}, which the log itself names",
        "peer": "device {peer} of server {server}, the other end",
        "address": "the device with address {address}, the other end",
        "first": "rank {rank}, which shows the cause",
        "device": "device {device}, which reports it",
        "reports": "rank {rank} reports; the log does not show whose fault it is",
        "nothing": "no known error is in it",
        "unclear": "no known error is in it; its first error stands below",
        "follow": "swift doctor --log FILES with the logs of all ranks, and with ~/ascend/log where there is one",
        "traceback": "read the traceback above that line ({where}), and the value that it names",
    },
    "zh": {
        "cause": "原因",
        "likely": "可能的原因",
        "unknown": "日志没有显示原因",
        "known": "已知",
        "rank": "先看",
        "do": "处理",
        "next": "下一步",
        "shown": "依据",
        "codes": "错误码",
        "also": "日志里还有",
        "waited": "rank {rank}，rank {waiting} 在等它",
        "awaited": "rank {rank}，别的 rank 在等它",
        "circle": "rank {circle} 之间的网络，它们在互相等待",
        "stuck": "rank {circle}，它们在互相等待",
        "place": "设备 {place}，日志自己点名的",
        "ranks": "rank {ranks}，日志自己点名的",
        "culprit": "rank {culprit}，日志自己点名的",
        "peer": "服务器 {server} 的设备 {peer}（对端）",
        "address": "地址为 {address} 的设备（对端）",
        "first": "rank {rank}，原因出现在它的日志里",
        "device": "设备 {device}，是它报的错",
        "reports": "rank {rank} 报错，但日志没有显示是谁的问题",
        "nothing": "里面没有已知的错误",
        "unclear": "里面没有已知的错误；第一条报错见下",
        "follow": "用 swift doctor --log 查看所有 rank 的日志；有 ~/ascend/log 时也加上",
        "traceback": "看这一行上面的堆栈（{where}）和报错里的取值",
    },
}
# A run on one device has no ranks, but says which device it is.
DEVICE = re.compile(
    r"\b(?:error from|occurs on the) device\((?:chipId:)?(\d+)|, Device:(\d+), RankID:-1\b|\bdevice_id=(\d+)"
    r"|\bopen device (\d+) failed\b|\bDEVICE\[(\d+)\] PID\["
    r"|\bdeviceI[dD][=\[](\d+)|\bdev(?:_id|[iI]d)=(\d+)"
)
# The cause is not in one device, or it is another one than the message names.
EVERYWHERE = ("env.", "program.", "system.", "visible.")
LINK_DEPTH = 40  # from here on a cause lies between two ranks
LONGEST = 300  # characters of a line that is quoted
MOST_CODES = 8


def look_at(found: Explanation, language: str) -> str:
    """Return which rank or device to look at first, empty where the log does not tell or has one process only."""
    words, first, who = LABELS[language], found.first, found.blame
    depth = first.cause.depth if first else WAITING_DEPTH
    for name in ("place", "ranks", "culprit", "peer", "address"):
        if first and first.fields.get(name):
            return fill(words[name], first.fields)
    if first and first.cause.id == "collective.unequal" and who.rank is not None:
        return fill(words["ranks"], {"ranks": ", ".join([*who.waiting, who.rank])})
    if depth >= WAITING_DEPTH and who.circle:
        circle = ", ".join(who.circle) + (f" of {who.group}" if who.group else "")
        return fill(words["stuck" if who.is_connected else "circle"], {"circle": circle})
    if depth >= LINK_DEPTH and who.rank is not None:
        waiting = ", ".join(one for one in who.waiting if one.isdecimal())  # else only its file is known
        return fill(words["waited" if waiting else "awaited"], {"rank": who.rank, "waiting": waiting})
    line = _reporting(found)
    if line is None or line.rank is None:
        device = _device(found)
        if device is None and first is None and found.only_rank is not None and found.excerpt:
            return fill(words["reports"], {"rank": found.only_rank})
        return fill(words["device"], {"device": device}) if device else ""
    return fill(words["first" if depth < WAITING_DEPTH else "reports"], {"rank": line.rank})


def _device(found: Explanation) -> str | None:
    """Return the device that the lines of a cause name, where the cause is not the same for all devices."""
    if found.first and found.first.cause.id.startswith(EVERYWHERE):
        return None
    if found.first and found.first.fields.get("device"):
        return found.first.fields["device"]
    near = found.near
    if found.first and found.first.cause.id.startswith("operator."):
        # the lines beside the one that shows it tell
        near = [one.line for one in found.symptoms if one.line.who == found.first.line.who] + near
    hit = next((hit for one in [*found.excerpt, *near] if (hit := DEVICE.search(one.text))), None)
    return next(filter(None, hit.groups())) if hit else None


def _reporting(found: Explanation) -> Line | None:
    if found.first:
        return found.first.line
    return found.excerpt[0] if found.excerpt else None


def _known(found: Explanation, language: str) -> str:
    codes = [f"{one.shown}: {one.known.words[language]}" for one in found.symptoms[:MOST_CODES]]
    unknown = LABELS[language]["unclear" if found.excerpt else "nothing"]
    return "; ".join(codes) or (found.raised.text if found.raised else unknown)


def _next(found: Explanation, language: str) -> str:
    """Return what to do where the cause is not shown."""
    words = LABELS[language]
    if found.symptoms:
        return found.symptoms[0].known.remedy[language]
    return fill(words["traceback"], {"where": found.raised.where}) if found.raised else words["follow"]


def _quote(line: Line) -> str:
    text = line.text.strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _said(words: Words, match: Match, language: str) -> str:
    return fill(words[language], match.fields)


def in_words(
    found: Explanation, language: str, notes: Sequence[str] = (), *, with_evidence: bool = True
) -> str:
    """Return the explanation as text: the cause first, then whom to look at, what to do, and the lines that show it."""
    words, first = LABELS[language], found.first
    lines = []
    if first:
        label = words["likely" if first.cause.is_likely else "cause"]
        lines.append(f"{label}: {_said(first.cause.words, first, language)}")
    else:
        lines += [f"{words['cause']}: {words['unknown']}", f"{words['known']}: {_known(found, language)}"]
    who = look_at(found, language)
    lines += [f"{words['rank']}: {who}"] if who else []
    if first:
        lines.append(f"{words['do']}: {_said(first.cause.remedy, first, language)}")
    else:
        lines.append(f"{words['next']}: {_next(found, language)}")
    lines += _evidence(found, language) if with_evidence else []
    lines += notes
    return "\n".join(lines)


def _evidence(found: Explanation, language: str) -> list[str]:
    words, first = LABELS[language], found.first
    lines = []
    if found.excerpt:
        top = found.excerpt[0]
        lines.append(f"{words['shown']} {top.source}:{top.number}:")
        lines += [f"    {_quote(line)}" for line in found.excerpt if line.text.strip()]
    codes = [
        f"{one.shown} {one.known.name}".strip() + f": {one.known.words[language]}" for one in found.symptoms
    ]
    if first and codes:
        lines += [f"{words['codes']}:", *(f"    {code}" for code in codes[:MOST_CODES])]
    if found.others:
        lines.append(f"{words['also']}:")
        lines += [f"    {_said(one.cause.words, one, language)}" for one in found.others[:3]]
    return lines


def as_json(found: Explanation, language: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the explanation for a program; `cause` is null when the log does not show it."""
    first = found.first
    return {
        "id": first.cause.id if first else "unknown",
        "cause": _said(first.cause.words, first, language) if first else None,
        "remedy": _said(first.cause.remedy, first, language) if first else _next(found, language),
        "is_likely": bool(first and first.cause.is_likely),
        "look_at": look_at(found, language),
        "evidence": [
            {"file": line.source, "line": line.number, "rank": line.rank, "text": _quote(line)}
            for line in found.excerpt
        ],
        "codes": [
            {
                "code": one.shown,
                "kind": one.kind,
                "name": one.known.name,
                "meaning": one.known.words[language],
            }
            for one in found.symptoms
        ],
        "also": [
            {"id": one.cause.id, "cause": _said(one.cause.words, one, language)} for one in found.others
        ],
        "notes": list(notes),
    }


def to_json(content: Any) -> str:
    """Return JSON as it is printed."""
    return json.dumps(content, ensure_ascii=False, indent=2)
