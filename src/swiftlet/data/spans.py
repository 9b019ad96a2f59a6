"""Where each message's content stands in the rendered text, found by rendering twice and proved by comparing.

Every content is put between two marks, characters of a private-use plane that occur nowhere in the conversation. A
rendering with marks that equals the true one once the marks are taken out shows where each content went, whatever
the template does around it. Where a template treats the bare edges of a content (it strips white space, or splits
at a tag such as </think>), marks inside those edges are tried next. Where no marked rendering equals the true one,
the place of the answers is not known, and nothing is returned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swiftlet.data.rendering import Renderer, TemplateError, as_template_message

_PLANES = ((0xF0000, re.compile("([\U000f0000-\U000ffffd])")), (0x100000, re.compile("([\U00100000-\U0010fffd])")))
_MOST_MARKS = 0xFFFC
_LEAVE_OUT = "leave such rows out with --bad_rows skip, or choose another template with --template_type"
Messages = Sequence[Mapping[str, Any]]


class Region(NamedTuple):
    """Characters [start, end) of the rendered text."""

    start: int
    end: int


class Located(NamedTuple):
    """A rendered conversation and, for each message, the regions its content fills: none where it was left out.

    `unknown` names messages whose regions could not be told; never those of the assistant.
    """

    text: str
    regions: list[list[Region]]
    unknown: frozenset[int]


class Piece(NamedTuple):
    """Characters [start, end) of message `message`'s content, without white space at the edges."""

    message: int
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
            if index + 1 == len(self.marks) or self.marks[index] % 2 or self.marks[index + 1] != self.marks[index] + 1:
                return None
            found.append((self.marks[index] // 2, index))
        return found

    def gap(self, index: int) -> int:
        """Return the number of characters between a mark and the one before it."""
        return self.at[index] - (self.at[index - 1] if index else 0)


class Locator:
    """Finds contents in the renderings of one template; `tags` are what it may look for inside a content."""

    def __init__(self, renderer: Renderer, tags: Sequence[str] = ()) -> None:
        self.renderer = renderer
        self.tags = re.compile("|".join(map(re.escape, tags))) if tags else None

    def locate(self, messages: Messages, tools: list[Any] | None = None) -> Located:
        """Render a conversation and find the content of each message in it.

        Raises:
            TemplateError: it cannot be rendered, or it cannot be told where its answers stand.
        """
        text = self.renderer.render([as_template_message(message) for message in messages], tools)
        plane = _free_plane(text, messages)
        found = self._by_whole_contents(text, messages, tools, plane)
        if found is None:
            found = self._by_pieces(text, messages, tools, plane, range(len(messages)))
        if found is None:
            answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
            found = self._by_pieces(text, messages, tools, plane, answers)
        if found is None:
            raise TemplateError(
                f"cannot tell where the answers stand in the text of chat template {self.renderer.name!r}: "
                "it renders them differently once their edges are marked",
                _LEAVE_OUT,
            )
        return found

    def marked(self, messages: Messages, tools: list[Any] | None, contents: Sequence[str], plane: int) -> Marked:
        """Render `messages` with marked `contents` and take the marks out.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        shown = [as_template_message(message, text) for message, text in zip(messages, contents, strict=True)]
        parts = _PLANES[plane][1].split(self.renderer.render(shown, tools))
        marks = [ord(mark) - _PLANES[plane][0] for mark in parts[1::2]]
        at, position = [], 0
        for gap in parts[0:-1:2]:
            position += len(gap)
            at.append(position)
        return Marked("".join(parts[0::2]), marks, at)

    def _by_whole_contents(
        self, text: str, messages: Messages, tools: list[Any] | None, plane: int
    ) -> Located | None:
        """Mark whole contents: right whenever the template prints them as they are."""
        contents = []
        for number, message in enumerate(messages):
            content = message.get("content") or ""
            contents.append(_between_marks(content, number, plane) if content else "")
        try:
            marked = self.marked(messages, tools, contents, plane)
        except TemplateError:
            return None
        pairs = marked.pairs()
        if marked.text != text or pairs is None:
            return None
        regions: list[list[Region]] = [[] for _ in messages]
        for number, index in pairs:
            regions[number].append(Region(marked.at[index], marked.at[index + 1]))
        return Located(text, regions, frozenset())

    def _by_pieces(
        self, text: str, messages: Messages, tools: list[Any] | None, plane: int, of: Sequence[int]
    ) -> Located | None:
        """Mark the text of the messages `of` inside white space and tags, and measure what survives of the edges."""
        pieces = [piece for number in of for piece in self._pieces(number, messages[number].get("content") or "")]
        if 2 * len(pieces) > _MOST_MARKS:
            return None
        layout = Layout(messages, pieces, plane)
        try:
            marked = self.marked(messages, tools, layout.contents(), plane)
            pairs = marked.pairs()
            if marked.text != text or pairs is None:
                return None
            edges = _Edges(text, layout, marked, pairs)
            no_lead = self.marked(messages, tools, layout.contents(drop_before=edges.first), plane)
            no_trail = self.marked(messages, tools, layout.contents(drop_after=edges.last), plane)
        except TemplateError:
            return None
        if no_lead.marks != marked.marks or no_trail.marks != marked.marks:
            return None
        regions = edges.regions(no_lead, no_trail, self.tags)
        return None if regions is None else Located(text, regions, frozenset(range(len(messages))) - set(of))

    def _pieces(self, number: int, content: str) -> list[Piece]:
        """Cut a content at the tags; what is left between them, without white space at the edges, are the pieces."""
        borders = [(0, 0), *(found.span() for found in self.tags.finditer(content))] if self.tags else [(0, 0)]
        ends = [start for start, _ in borders[1:]] + [len(content)]
        pieces = []
        for (_, start), end in zip(borders, ends, strict=True):
            core = content[start:end].strip()
            if core:
                begin = start + content[start:end].index(core)
                pieces.append(Piece(number, begin, begin + len(core)))
        return pieces


class Layout:
    """Contents whose pieces are marked; the number of a pair of marks is the index of its piece."""

    def __init__(self, messages: Messages, pieces: list[Piece], plane: int) -> None:
        self.messages = messages
        self.pieces = pieces
        self.plane = plane

    def content(self, number: int) -> str:
        return self.messages[number].get("content") or ""

    def contents(self, drop_before: frozenset[int] = frozenset(), drop_after: frozenset[int] = frozenset()) -> list[str]:
        """Return every message's content with marks, without the white space before and after the pieces named."""
        built: list[list[str]] = [[] for _ in self.messages]
        done = [0] * len(self.messages)
        strip_next: set[int] = set()
        for index, piece in enumerate(self.pieces):
            content, begin = self.content(piece.message), done[piece.message]
            between = content[begin : piece.start]
            between = between.lstrip() if piece.message in strip_next else between
            between = between.rstrip() if index in drop_before else between
            built[piece.message] += [between, _between_marks(content[piece.start : piece.end], index, self.plane)]
            done[piece.message] = piece.end
            (strip_next.add if index in drop_after else strip_next.discard)(piece.message)
        for number, parts in enumerate(built):
            rest = self.content(number)[done[number] :]
            parts.append(rest.lstrip() if number in strip_next else rest)
        return ["".join(parts) for parts in built]


class _Edges:
    """The first and last piece of each message that the template printed, and how far its content reaches around them."""

    def __init__(self, text: str, layout: Layout, marked: Marked, pairs: list[tuple[int, int]]) -> None:
        self.text = text
        self.layout = layout
        self.marked = marked
        self.runs = _runs(layout.pieces, pairs)
        self.first = frozenset(run[0][0] for run in self.runs)
        self.last = frozenset(run[-1][0] for run in self.runs)

    def regions(self, no_lead: Marked, no_trail: Marked, tags: re.Pattern[str] | None) -> list[list[Region]] | None:
        """Return each message's regions; None where a length does not add up."""
        regions: list[list[Region]] = [[] for _ in self.layout.messages]
        floor = 0
        for order, run in enumerate(self.runs):
            (first, opening), (last, closing) = run[0], run[-1]
            number = self.layout.pieces[first].message
            start = self.marked.at[opening] - (self.marked.gap(opening) - no_lead.gap(opening))
            after = closing + 2
            kept = self._gap_after(self.marked, after) - self._gap_after(no_trail, after)
            end = self.marked.at[closing + 1] + kept
            following = self.runs[order + 1][0][1] if order + 1 < len(self.runs) else None
            ceiling = len(self.text) if following is None else self.marked.at[following]
            start, end = self._with_tags(number, (first, last), Region(start, end), Region(floor, ceiling), tags)
            if not floor <= start <= self.marked.at[opening] or not self.marked.at[closing + 1] <= end <= ceiling:
                return None
            regions[number].append(Region(start, end))
            floor = end
        return regions

    def _gap_after(self, marked: Marked, index: int) -> int:
        return marked.gap(index) if index < len(marked.at) else len(marked.text) - marked.at[-1]

    def _with_tags(
        self, number: int, ends: tuple[int, int], inner: Region, outer: Region, tags: re.Pattern[str] | None
    ) -> Region:
        """Widen a region over the tags that begin and end its content, where the template printed them there."""
        pieces, content = self.layout.pieces, self.layout.content(number)
        start, end = inner
        is_first = ends[0] == 0 or pieces[ends[0] - 1].message != number
        is_last = ends[1] + 1 == len(pieces) or pieces[ends[1] + 1].message != number
        before = tags.findall(content[: pieces[ends[0]].start]) if tags and is_first else []
        for tag in reversed(before):
            bare = self.text[outer.start : start].rstrip()
            if not bare.endswith(tag):
                break
            start = outer.start + len(bare) - len(tag)
        after = tags.findall(content[pieces[ends[1]].end :]) if tags and is_last else []
        for tag in after:
            rest = self.text[end : outer.end]
            if not rest.lstrip().startswith(tag):
                break
            end += len(rest) - len(rest.lstrip()) + len(tag)
        return Region(start, end)


def _runs(pieces: list[Piece], pairs: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group what was printed into runs of one message, its pieces in rising order: a second run is a second printing."""
    runs: list[list[tuple[int, int]]] = []
    for pair, index in pairs:
        if runs and pieces[runs[-1][-1][0]].message == pieces[pair].message and runs[-1][-1][0] < pair:
            runs[-1].append((pair, index))
        else:
            runs.append([(pair, index)])
    return runs


def _between_marks(text: str, pair: int, plane: int) -> str:
    base = _PLANES[plane][0] + 2 * pair
    return f"{chr(base)}{text}{chr(base + 1)}"


def _free_plane(text: str, messages: Messages) -> int:
    """Return the private-use plane that this conversation does not use."""
    if 2 * len(messages) > _MOST_MARKS:
        raise TemplateError(f"a conversation of {len(messages)} messages is too long to be rendered", _LEAVE_OUT)
    for plane, (_, characters) in enumerate(_PLANES):
        if not characters.search(text) and not any(characters.search(m.get("content") or "") for m in messages):
            return plane
    raise TemplateError("the conversation uses both of Unicode's supplementary private-use planes", _LEAVE_OUT)
