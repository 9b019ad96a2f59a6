"""The lines of logs as one text that patterns run over: without what is only advice, and quickly."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate, takewhile

from swiftlet.doctor.levels import ERROR
from swiftlet.doctor.logs import Line

# What a message advises in every case: lists of what may be, which must not be taken for what is. Their numbered
# items stand in the same line or in those below, there also behind the head that each line of a plog has.
ADVICE = re.compile(
    r"(?:Possible [Cc]auses?|Solutions?|Suggest\w*|可能原因|可能的原因|解决方法|处理建议)\s*[:：].*"
    r"|[Rr]easons?\s*[:：] ?1[.)、].*"
)
REASONS = re.compile(
    r"(?:following|possible|可能|以下)\s*(?:的)?\s*(?:reasons?|causes?|原因)[^:：\n]{0,40}[:：]",
    re.IGNORECASE,
)
# One is in all of these.
ADVICE_WORDS = ("ause", "olution", "uggest", "eason", "原因", "解决方法", "处理建议")
# The runtime failed to fetch the words of an error, which is not the error.
NO_WORDS = re.compile(r"rtGetDevMsg|GetDevErrMsg")
ITEM = re.compile(r"^(?:[^\n]{0,200}?[\])]:?)?\s*\(?\d{1,2}[.)、](?!\d)")
ITEMS = re.compile(r"\s\(?1[.)、](?!\d).*")
# Parts of a pattern that are no text of their own: escapes, classes, groups, what may be absent or come many times.
ESCAPE, CLASS, GROUP = re.compile(r"\\."), re.compile(r"\[\^?\]?[^\]]*\]"), re.compile(r"\([^()]*\)")
OPTIONAL = re.compile(r".?[?*]\??|.?\{[^}]*\}\??|[+.^$]")
VERBOSE = re.compile(r"\(\?[a-z]*x")  # there spaces and comments are no text
WITHIN_LINE = re.compile(r"\[\^[^\]]*\\n[^\]]*\]|\\\\")  # all but a line break, and no escape
ACROSS = re.compile(r"\\[nsWD]|\[\^|\(\?[a-z]*s")  # what a line break can be a part of
NEAR = 12  # lines in which one failure tells its device before or after its cause
SHOWN = 3  # lines of an excerpt
FRAME = re.compile(r'^\W*(?:\[rank\d+\]:)?\s*File "[^"]+", line \d+')
FEW = 8  # of so many lines one may have a pattern's words: more are faster looked at as a whole


class Text:
    """Lines joined without their advice, so that a pattern runs over all of them at once."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = list(lines)
        said = _without_advice(self.lines)
        self.starts = list(accumulate((len(text) + 1 for text in said), initial=0))
        self.joined = "\n".join(said)
        self.lower = self.joined.replace("\u0130", "I").lower()  # the one letter that grows when made small

    def hits(self, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
        """Return each match with the place of its line."""
        for start, end in self._where(pattern):
            for hit in pattern.finditer(self.joined, start, end):
                yield bisect_right(self.starts, hit.start()) - 1, hit

    def has(self, pattern: re.Pattern[str]) -> bool:
        """Return whether some line matches."""
        return any(pattern.search(self.joined, start, end) for start, end in self._where(pattern))

    @cached_property
    def only_rank(self) -> str | None:
        """The rank of all lines that say one."""
        ranks = {line.rank for line in self.lines} - {None}
        return ranks.pop() if len(ranks) == 1 else None

    def first_error(self) -> int | None:
        """Return the place of the first line that says that it is an error, else of a piece of a traceback."""
        errors = (at for at, line in enumerate(self.lines) if line.level == ERROR)
        ended = ((at, line) for at, line in enumerate(self.lines) if not line.is_survived)
        frames = (at for at, line in ended if FRAME.search(line.text))
        return next(errors, next(frames, None))

    def excerpt(self, at: int | None) -> list[Line]:
        """Return the line at a place with those below it that are shown beside it."""
        shown = self.lines[at : at + SHOWN] if at is not None else []
        return [line for line in shown if line.source == shown[0].source]

    def near(self, at: int | None) -> list[Line]:
        """Return what the same process says below an excerpt until another one speaks, then above, nearest first."""
        if at is None:
            return []
        one, above = self.lines[at], self.lines[max(0, at - NEAR) : at]
        below = takewhile(
            lambda line: line.who == one.who and line.process in (None, one.process),
            self.lines[at + SHOWN : at + NEAR],
        )
        return [*below, *(line for line in above[::-1] if (line.who, line.process) == (one.who, one.process))]

    def _where(self, pattern: re.Pattern[str]) -> Sequence[tuple[int, int]]:
        """Return the parts of the text in which a pattern can match: lines that have its words, where they are few."""
        whole = [(0, len(self.joined))]
        words = needed_words(pattern.pattern)
        if "" in words:
            return whole
        if crosses_lines(pattern.pattern):
            return whole if any(word in self.lower for word in words) else []
        most = len(self.lines) // FEW
        found: set[int] = set()
        for word in words:
            at = self.lower.find(word)
            while at >= 0:
                line = bisect_right(self.starts, at) - 1
                found.add(line)
                if len(found) > most:
                    return whole
                at = self.lower.find(word, self.starts[line + 1] - 1)
        return [(self.starts[line], self.starts[line + 1] - 1) for line in sorted(found)]


@cache
def needed_words(pattern: str) -> tuple[str, ...]:
    """Return, in small letters, texts of which one is in whatever the pattern matches, as they are found much faster.

    Each is one between groups, classes and escapes, of one of the choices that `|` leaves; where a choice has none,
    an empty one, which is in everything.
    """
    if VERBOSE.search(pattern):
        return ("",)
    plain = CLASS.sub("\0", ESCAPE.sub("\0", pattern))
    while (without := GROUP.sub("\0", plain)) != plain:
        plain = without
    return tuple(max(OPTIONAL.sub("\0", one).split("\0"), key=len).lower() for one in plain.split("|"))


@cache
def crosses_lines(pattern: str) -> bool:
    """Return whether a match can have a line break within it."""
    return ACROSS.search(WITHIN_LINE.sub("", pattern)) is not None


def _without_advice(lines: Sequence[Line]) -> list[str]:
    """Return what lines say, without lists of what may be."""
    said = []
    is_list = False
    for line in lines:
        if (is_list and ITEM.match(line.text)) or ("GetDev" in line.text and NO_WORDS.search(line.text)):
            said.append("")
            continue
        if not any(word in line.text for word in ADVICE_WORDS):
            said.append(line.text)
            is_list = False
            continue
        text = ADVICE.sub("", line.text)
        reasons = REASONS.search(text)
        is_list = reasons is not None or text != line.text
        said.append(text[: reasons.end()] + ITEMS.sub("", text[reasons.end() :]) if reasons else text)
    return said
