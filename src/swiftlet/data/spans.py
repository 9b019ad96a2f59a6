"""Where each message's content stands in the rendered text, found by rendering twice and proved by comparing.

Every content, every thought beside one, and the name in every tool call, is put between two marks, characters of a
private-use plane that occur nowhere in the conversation. A rendering with marks that equals the true one once the marks
are taken out shows where each went, whatever the template does around it. Where a template treats the bare edges of a
text (it strips white space, or splits at a tag such as </think>), marks inside those edges are tried next. Where no
marked rendering equals the true one, the place of the answers is not known, and nothing is returned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from swiftlet.data.pieces import (
    PLANES,
    Edges,
    Layout,
    Marked,
    Messages,
    Piece,
    Region,
    between_marks,
    texts_of,
)
from swiftlet.data.rendering import (
    LEAVE_OUT_OR_CHANGE,
    Renderer,
    TemplateError,
    as_template_message,
    called_name,
)

_MOST_MARKS = 0xFFFC


Places = list[tuple[int, int]]  # of tool calls: message, number of the call in it


class Request(NamedTuple):
    """What a marked rendering needs beside its messages: the plane of the marks, and which calls are marked."""

    tools: list[Any] | None
    prompt: bool
    plane: int
    places: Places


class Located(NamedTuple):
    """A rendered conversation and, for each message, the regions its content fills: none where it was left out.

    `unknown` names messages whose regions could not be told; never those of the assistant.
    `calls` are the names of the functions that the tool calls of a message call, as printed; None where there are
    none or their places could not be told.
    `thoughts` are, for each message, the regions of what was thought before it; () where no message has a thought.
    """

    text: str
    regions: list[list[Region]]
    unknown: frozenset[int]
    calls: dict[int, list[Region]] | None = None
    thoughts: Sequence[list[Region]] = ()

    def thought(self, number: int) -> list[Region]:
        """Return where the thought of a message is printed."""
        return self.thoughts[number] if self.thoughts else []

    def printed(self, number: int) -> list[Region]:
        """Return what is known to be printed of a message: its thought, its content and the names in its calls."""
        more = [*self.thought(number), *(self.calls or {}).get(number, [])]
        return sorted([*self.regions[number], *more]) if more else self.regions[number]

    def texts(self) -> list[list[Region]]:
        """Return the regions of each text of the conversation, the contents and behind them the thoughts."""
        return [*self.regions, *self.thoughts]


class Calls(NamedTuple):
    """Tool calls whose names are marked; `first` is the number of the first one's pair of marks."""

    places: Places
    first: int

    def names(self, messages: Messages, plane: int) -> list[list[str] | None]:
        """Return the marked names of each message's calls."""
        marked: list[list[str] | None] = [None] * len(messages)
        for pair, (number, index) in enumerate(self.places, self.first):
            name = called_name(messages[number]["tool_calls"][index])
            marked[number] = [*(marked[number] or []), between_marks(name, pair, plane)]
        return marked

    def found(self, marked: Marked, pairs: list[tuple[int, int]]) -> dict[int, list[Region]]:
        """Return the place of each printed name, the first one where it is printed again."""
        places: dict[int, Region] = {}
        for pair, index in pairs:
            if pair >= self.first:
                places.setdefault(pair, Region(marked.at[index], marked.at[index + 1]))
        calls: dict[int, list[Region]] = {}
        for pair, region in sorted(places.items()):
            calls.setdefault(self.places[pair - self.first][0], []).append(region)
        return calls


class Locator:
    """Finds contents in the renderings of one template; `tags` are what it may look for inside a content."""

    def __init__(self, renderer: Renderer, tags: Sequence[str] = ()) -> None:
        self.renderer = renderer
        self.tags = re.compile("|".join(map(re.escape, tags))) if tags else None

    def locate(self, messages: Messages, tools: list[Any] | None = None, *, prompt: bool = False) -> Located:
        """Render a conversation, with the generation prompt or without, and find the content of each message in it.

        Raises:
            TemplateError: it cannot be rendered, or it cannot be told where its answers stand.
        """
        calls = [
            (number, index)
            for number, message in enumerate(messages)
            for index in range(len(message.get("tool_calls") or ()))
        ]
        if 2 * (len(texts_of(messages)) + len(calls)) > _MOST_MARKS:
            raise TemplateError(
                f"a conversation of {len(messages)} messages is too long to be rendered", LEAVE_OUT_OR_CHANGE
            )
        text = self.render(messages, tools, prompt=prompt)
        request = Request(tools, prompt, _free_plane(text, messages), calls)
        found = self._find(text, messages, request)
        if found is None and calls:  # a template may look at a name, and not know it with marks
            found = self._find(text, messages, request._replace(places=[]))
            found = None if found is None else found._replace(calls=None)
        if found is None:
            raise TemplateError(
                f"cannot tell where the answers stand in the text of chat template {self.renderer.name!r}: "
                "it renders them differently once their edges are marked",
                LEAVE_OUT_OR_CHANGE,
            )
        return found

    def _find(self, text: str, messages: Messages, request: Request) -> Located | None:
        found = self._by_whole_contents(text, messages, request)
        return self._by_pieces_of(text, messages, request) if found is None else found

    def render(self, messages: Messages, tools: list[Any] | None, *, prompt: bool) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        shown = [as_template_message(message) for message in messages]
        return self.renderer.render(shown, tools, generation_prompt=prompt)

    def marked(self, messages: Messages, request: Request, texts: Sequence[str], calls: Calls) -> Marked:
        """Render `messages` with marked `texts` and names of `calls`, and take the marks out.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        plane = request.plane
        names = calls.names(messages, plane)
        contents, thoughts = texts[: len(messages)], texts[len(messages) :] or [""] * len(messages)
        shown = [
            as_template_message(*parts) for parts in zip(messages, contents, names, thoughts, strict=True)
        ]
        text = self.renderer.render(shown, request.tools, generation_prompt=request.prompt)
        parts = PLANES[plane][1].split(text)
        marks = [ord(mark) - PLANES[plane][0] for mark in parts[1::2]]
        at, position = [], 0
        for gap in parts[0:-1:2]:
            position += len(gap)
            at.append(position)
        return Marked("".join(parts[0::2]), marks, at)

    def _by_whole_contents(self, text: str, messages: Messages, request: Request) -> Located | None:
        """Mark whole texts: right whenever the template prints them as they are."""
        texts = [
            between_marks(text, number, request.plane) if text else ""
            for number, text in enumerate(texts_of(messages))
        ]
        calls = Calls(request.places, len(texts))
        try:
            marked = self.marked(messages, request, texts, calls)
        except TemplateError:
            return None
        pairs = marked.pairs()
        if marked.text != text or pairs is None:
            return None
        regions: list[list[Region]] = [[] for _ in texts]
        for number, index in pairs:
            if number < calls.first:
                regions[number].append(Region(marked.at[index], marked.at[index + 1]))
        own, thoughts = regions[: len(messages)], regions[len(messages) :]
        return Located(text, own, frozenset(), calls.found(marked, pairs), thoughts)

    def _by_pieces_of(self, text: str, messages: Messages, request: Request) -> Located | None:
        """Mark the pieces of all messages, or else of the answers alone.

        A content that is nothing but tags is marked whole first, for a template that prints it; then it is not marked
        and counts as left out, for one that takes tags such as </think> away.
        """
        texts = texts_of(messages)
        everyone = range(len(texts))
        answers = [number for number in everyone if messages[number % len(messages)]["role"] == "assistant"]
        tried: list[list[Piece]] = []
        for of, bare_tags in product((everyone, answers), (True, False)):
            pieces = [piece for number in of for piece in self._pieces(number, texts[number], bare_tags)]
            if pieces in tried:  # nothing but tags nowhere: the same marks as before
                continue
            tried.append(pieces)
            found = self._by_pieces(text, messages, request, of, pieces)
            if found is not None:
                return found
        return None

    def _by_pieces(
        self,
        text: str,
        messages: Messages,
        request: Request,
        of: Sequence[int],
        pieces: list[Piece],
    ) -> Located | None:
        """Mark the `pieces` of the texts `of`, and measure what survives of their edges."""
        if 2 * (len(pieces) + len(request.places)) > _MOST_MARKS:
            return None
        layout, calls = Layout(texts_of(messages), pieces, request.plane), Calls(request.places, len(pieces))
        try:
            marked = self.marked(messages, request, layout.marked(), calls)
            pairs = marked.pairs()
            if marked.text != text or pairs is None:
                return None
            edges = Edges(text, layout, marked, [pair for pair in pairs if pair[0] < calls.first])
            no_lead, no_trail = (
                self.marked(messages, request, texts, calls)
                for texts in (layout.marked(drop_before=edges.first), layout.marked(drop_after=edges.last))
            )
        except TemplateError:
            return None
        if no_lead.marks != marked.marks or no_trail.marks != marked.marks:
            return None
        regions = edges.regions(no_lead, no_trail, self.tags)
        if regions is None:
            return None
        unknown = frozenset(range(len(messages))) - set(of)
        own, thoughts = regions[: len(messages)], regions[len(messages) :]
        return Located(text, own, unknown, calls.found(marked, pairs), thoughts)

    def _pieces(self, number: int, content: str, bare_tags: bool) -> list[Piece]:
        """Cut a text at the tags; what is left between them, without white space at the edges, are the pieces.

        With `bare_tags`, a text that has no such piece is one as a whole.
        """
        borders = (
            [(0, 0), *(found.span() for found in self.tags.finditer(content))] if self.tags else [(0, 0)]
        )
        ends = [start for start, _ in borders[1:]] + [len(content)]
        pieces = []
        for (_, start), end in zip(borders, ends, strict=True):
            core = content[start:end].strip()
            if core:
                begin = start + content[start:end].index(core)
                pieces.append(Piece(number, begin, begin + len(core)))
        if bare_tags and not pieces and (core := content.strip()):
            pieces.append(Piece(number, content.index(core), content.index(core) + len(core)))
        return pieces


def _free_plane(text: str, messages: Messages) -> int:
    """Return the private-use plane that this conversation does not use."""
    for plane, (_, characters) in enumerate(PLANES):
        if not any(characters.search(one) for one in (text, *texts_of(messages))):
            return plane
    raise TemplateError(
        "the conversation uses both of Unicode's supplementary private-use planes", LEAVE_OUT_OR_CHANGE
    )
