"""Where each message's content stands in the rendered text, found by rendering twice and proved by comparing.

Every content is put between two marks, characters of a private-use plane that occur nowhere in the conversation. A
rendering with marks that equals the true one once the marks are taken out shows where each content went, whatever
the template does around it. Where a template treats the bare edges of a content (it strips white space, or splits
at a tag such as </think>), marks inside those edges are tried next. Where no marked rendering equals the true one,
the place of the answers is not known, and nothing is returned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from swiftlet.data.pieces import PLANES, Edges, Layout, Marked, Messages, Piece, Region, between_marks
from swiftlet.data.rendering import Renderer, TemplateError, as_template_message

_MOST_MARKS = 0xFFFC
_LEAVE_OUT = "leave such rows out with --bad_rows skip, or choose another template with --template_type"


class Request(NamedTuple):
    """What a rendering needs beside its messages."""

    tools: list[Any] | None
    prompt: bool


class Located(NamedTuple):
    """A rendered conversation and, for each message, the regions its content fills: none where it was left out.

    `unknown` names messages whose regions could not be told; never those of the assistant.
    """

    text: str
    regions: list[list[Region]]
    unknown: frozenset[int]


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
        if 2 * len(messages) > _MOST_MARKS:
            raise TemplateError(
                f"a conversation of {len(messages)} messages is too long to be rendered", _LEAVE_OUT
            )
        text = self.render(messages, tools, prompt=prompt)
        plane = _free_plane(text, messages)
        request = Request(tools, prompt)
        found = self._by_whole_contents(text, messages, request, plane)
        if found is None:
            found = self._by_pieces_of(text, messages, request, plane)
        if found is None:
            raise TemplateError(
                f"cannot tell where the answers stand in the text of chat template {self.renderer.name!r}: "
                "it renders them differently once their edges are marked",
                _LEAVE_OUT,
            )
        return found

    def render(self, messages: Messages, tools: list[Any] | None, *, prompt: bool) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        shown = [as_template_message(message) for message in messages]
        return self.renderer.render(shown, tools, generation_prompt=prompt)

    def marked(self, messages: Messages, request: Request, contents: Sequence[str], plane: int) -> Marked:
        """Render `messages` with marked `contents` and take the marks out.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        shown = [as_template_message(message, text) for message, text in zip(messages, contents, strict=True)]
        text = self.renderer.render(shown, request.tools, generation_prompt=request.prompt)
        parts = PLANES[plane][1].split(text)
        marks = [ord(mark) - PLANES[plane][0] for mark in parts[1::2]]
        at, position = [], 0
        for gap in parts[0:-1:2]:
            position += len(gap)
            at.append(position)
        return Marked("".join(parts[0::2]), marks, at)

    def _by_whole_contents(
        self, text: str, messages: Messages, request: Request, plane: int
    ) -> Located | None:
        """Mark whole contents: right whenever the template prints them as they are."""
        contents = []
        for number, message in enumerate(messages):
            content = message.get("content") or ""
            contents.append(between_marks(content, number, plane) if content else "")
        try:
            marked = self.marked(messages, request, contents, plane)
        except TemplateError:
            return None
        pairs = marked.pairs()
        if marked.text != text or pairs is None:
            return None
        regions: list[list[Region]] = [[] for _ in messages]
        for number, index in pairs:
            regions[number].append(Region(marked.at[index], marked.at[index + 1]))
        return Located(text, regions, frozenset())

    def _by_pieces_of(self, text: str, messages: Messages, request: Request, plane: int) -> Located | None:
        """Mark the pieces of all messages, or else of the answers alone.

        A content that is nothing but tags is marked whole first, for a template that prints it; then it is not marked
        and counts as left out, for one that takes tags such as </think> away.
        """
        everyone = range(len(messages))
        answers = [number for number in everyone if messages[number]["role"] == "assistant"]
        tried: list[list[Piece]] = []
        for of, bare_tags in product((everyone, answers), (True, False)):
            contents = ((number, messages[number].get("content") or "") for number in of)
            pieces = [piece for one in contents for piece in self._pieces(*one, bare_tags)]
            if pieces in tried:  # nothing but tags nowhere: the same marks as before
                continue
            tried.append(pieces)
            found = self._by_pieces(text, messages, request, plane, of, pieces)
            if found is not None:
                return found
        return None

    def _by_pieces(
        self,
        text: str,
        messages: Messages,
        request: Request,
        plane: int,
        of: Sequence[int],
        pieces: list[Piece],
    ) -> Located | None:
        """Mark the `pieces` of the messages `of`, and measure what survives of the edges of their contents."""
        if 2 * len(pieces) > _MOST_MARKS:
            return None
        layout = Layout(messages, pieces, plane)
        try:
            marked = self.marked(messages, request, layout.contents(), plane)
            pairs = marked.pairs()
            if marked.text != text or pairs is None:
                return None
            edges = Edges(text, layout, marked, pairs)
            no_lead = self.marked(messages, request, layout.contents(drop_before=edges.first), plane)
            no_trail = self.marked(messages, request, layout.contents(drop_after=edges.last), plane)
        except TemplateError:
            return None
        if no_lead.marks != marked.marks or no_trail.marks != marked.marks:
            return None
        regions = edges.regions(no_lead, no_trail, self.tags)
        return None if regions is None else Located(text, regions, frozenset(range(len(messages))) - set(of))

    def _pieces(self, number: int, content: str, bare_tags: bool) -> list[Piece]:
        """Cut a content at the tags; what is left between them, without white space at the edges, are the pieces.

        With `bare_tags`, a content that has no such piece is one as a whole.
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
        if not characters.search(text) and not any(
            characters.search(m.get("content") or "") for m in messages
        ):
            return plane
    raise TemplateError(
        "the conversation uses both of Unicode's supplementary private-use planes", _LEAVE_OUT
    )
