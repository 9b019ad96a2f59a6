"""Texts with marks at the edges of their pieces, and what a marked rendering tells about where they went.

The texts of a conversation are the contents of its messages and, behind them, what was thought before each answer.

A piece is a stretch of a text without white space at its edges; tags such as </think>, which a template
may look for, stand between pieces. A pair of marks encloses each piece; pair n has the characters 2n and 2n + 1 of a
private-use plane of Unicode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swiftlet.data.chat import THOUGHT

PLANES = (
    (0xF0000, re.compile("([\U000f0000-\U000ffffd])")),
    (0x100000, re.compile("([\U00100000-\U0010fffd])")),
)
Messages = Sequence[Mapping[str, Any]]


class Region(NamedTuple):
    """Characters [start, end) of the rendered text."""

    start: int
    end: int


class Piece(NamedTuple):
    """Characters [start, end) of text `number`, without white space at the edges."""

    number: int
    start: int
    end: int


class Marked(NamedTuple):
    """A rendering with its marks taken out: which marks there were, and where in `text`."""

    text: str
    marks: list[int]
    at: list[int]

    def pairs(self) -> list[tuple[int, int]] | None:
        """Return (pair number, index of its opening mark), in order; None if a pair is torn apart."""
        found = []
        for index in range(0, len(self.marks), 2):
            if (
                index + 1 == len(self.marks)
                or self.marks[index] % 2
                or self.marks[index + 1] != self.marks[index] + 1
            ):
                return None
            found.append((self.marks[index] // 2, index))
        return found

    def gap(self, index: int) -> int:
        """Return the number of characters between a mark and the one before it."""
        return self.at[index] - (self.at[index - 1] if index else 0)


def texts_of(messages: Messages) -> list[str]:
    """Return the contents of messages, and behind them, where any has one, what was thought before each."""
    contents = [message.get("content") or "" for message in messages]
    thoughts = [message.get(THOUGHT) or "" for message in messages]
    return [*contents, *thoughts] if any(thoughts) else contents


class Layout:
    """Texts whose pieces are marked; the number of a pair of marks is the index of its piece."""

    def __init__(self, texts: Sequence[str], pieces: list[Piece], plane: int) -> None:
        self.texts = texts
        self.pieces = pieces
        self.plane = plane

    def marked(
        self, drop_before: frozenset[int] = frozenset(), drop_after: frozenset[int] = frozenset()
    ) -> list[str]:
        """Return every text with marks, without the white space before and after the pieces named."""
        built: list[list[str]] = [[] for _ in self.texts]
        done = [0] * len(self.texts)
        strip_next: set[int] = set()
        for index, piece in enumerate(self.pieces):
            text, begin = self.texts[piece.number], done[piece.number]
            between = text[begin : piece.start]
            between = between.lstrip() if piece.number in strip_next else between
            between = between.rstrip() if index in drop_before else between
            built[piece.number] += [
                between,
                between_marks(text[piece.start : piece.end], index, self.plane),
            ]
            done[piece.number] = piece.end
            (strip_next.add if index in drop_after else strip_next.discard)(piece.number)
        for number, parts in enumerate(built):
            rest = self.texts[number][done[number] :]
            parts.append(rest.lstrip() if number in strip_next else rest)
        return ["".join(parts) for parts in built]


class Edges:
    """The first and last piece of each text that was printed, and how far it reaches around them."""

    def __init__(self, text: str, layout: Layout, marked: Marked, pairs: list[tuple[int, int]]) -> None:
        self.text = text
        self.layout = layout
        self.marked = marked
        self.runs = _runs(layout.pieces, pairs)
        self.first = frozenset(run[0][0] for run in self.runs)
        self.last = frozenset(run[-1][0] for run in self.runs)

    def regions(
        self, no_lead: Marked, no_trail: Marked, tags: re.Pattern[str] | None
    ) -> list[list[Region]] | None:
        """Return each text's regions; None where a length does not add up."""
        regions: list[list[Region]] = [[] for _ in self.layout.texts]
        floor = 0
        for order, run in enumerate(self.runs):
            (first, opening), (last, closing) = run[0], run[-1]
            number = self.layout.pieces[first].number
            start = self.marked.at[opening] - (self.marked.gap(opening) - no_lead.gap(opening))
            after = closing + 2
            kept = self._gap_after(self.marked, after) - self._gap_after(no_trail, after)
            end = self.marked.at[closing + 1] + kept
            following = self.runs[order + 1][0][1] if order + 1 < len(self.runs) else None
            ceiling = len(self.text) if following is None else self.marked.at[following]
            start, end = self._with_tags(
                number, (first, last), Region(start, end), Region(floor, ceiling), tags
            )
            if (
                not floor <= start <= self.marked.at[opening]
                or not self.marked.at[closing + 1] <= end <= ceiling
            ):
                return None
            regions[number].append(Region(start, end))
            floor = end
        return regions

    def _gap_after(self, marked: Marked, index: int) -> int:
        return marked.gap(index) if index < len(marked.at) else len(marked.text) - marked.at[-1]

    def _with_tags(
        self, number: int, ends: tuple[int, int], inner: Region, outer: Region, tags: re.Pattern[str] | None
    ) -> Region:
        """Widen a region over the tags that begin and end its text, where the template printed them there."""
        pieces, text = self.layout.pieces, self.layout.texts[number]
        start, end = inner
        is_first = ends[0] == 0 or pieces[ends[0] - 1].number != number
        is_last = ends[1] + 1 == len(pieces) or pieces[ends[1] + 1].number != number
        before = tags.findall(text[: pieces[ends[0]].start]) if tags and is_first else []
        for tag in reversed(before):
            bare = self.text[outer.start : start].rstrip()
            if not bare.endswith(tag):
                break
            start = outer.start + len(bare) - len(tag)
        after = tags.findall(text[pieces[ends[1]].end :]) if tags and is_last else []
        for tag in after:
            rest = self.text[end : outer.end]
            if not rest.lstrip().startswith(tag):
                break
            end += len(rest) - len(rest.lstrip()) + len(tag)
        return Region(start, end)


def _runs(pieces: list[Piece], pairs: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group what was printed into runs of one text, its pieces in rising order; a second run prints it again."""
    runs: list[list[tuple[int, int]]] = []
    for pair, index in pairs:
        if runs and pieces[runs[-1][-1][0]].number == pieces[pair].number and runs[-1][-1][0] < pair:
            runs[-1].append((pair, index))
        else:
            runs.append([(pair, index)])
    return runs


def between_marks(text: str, pair: int, plane: int) -> str:
    base = PLANES[plane][0] + 2 * pair
    return f"{chr(base)}{text}{chr(base + 1)}"
