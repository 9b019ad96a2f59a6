"""Where each assistant turn begins and ends in a rendered conversation.

A turn's span is its content as rendered and the end marker that the template prints after it, with the white space
between them. What the template prints of a turn beyond its content, such as tool calls, belongs to the marker's side
of it. The marker is found by comparing what follows the answer when the conversation ends there with what follows
when it goes on: what the two share closes the turn, the rest is the header of the next one.

A turn also has the place where the model would begin to write: the end of the generation prompt. Between it and the
content may stand a scaffold, such as an empty <think> block, which is printed but not part of the answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from swiftlet.data.rendering import TemplateError
from swiftlet.data.skeleton import Conversation, Skeleton, Turn, fill, learn, shape_of
from swiftlet.data.spans import Located, Locator, Messages, Region
from swiftlet.data.tokenizer import Tokenizer

_LEAVE_OUT = "leave such rows out with --bad_rows skip, or choose another template with --template_type"
_MOST_SHAPES, _MOST_SKELETONS = 4096, 4
_QUESTION: dict[str, Any] = {"role": "user", "content": "q"}
_ANSWER: dict[str, Any] = {"role": "assistant", "content": "a"}
_SYSTEM: dict[str, Any] = {"role": "system", "content": "s"}


class Closing(NamedTuple):
    """The end markers of a turn: where the conversation goes on after it, and where it ends with it."""

    middle: str
    last: str


@dataclass(frozen=True)
class TurnFinder:
    """Finds the assistant turns in the renderings of one template."""

    locator: Locator
    tokenizer: Tokenizer
    closings: dict[tuple[Any, ...], Closing] = field(default_factory=dict)
    skeletons: dict[tuple[object, ...], list[Skeleton]] = field(default_factory=dict)

    def find(
        self, messages: Messages, tools: list[Any] | None = None, *, prompt: bool = False
    ) -> Conversation:
        """Render a conversation, with the generation prompt or without, and find its assistant turns.

        Raises:
            TemplateError: it cannot be rendered, or it cannot be told where its answers stand.
        """
        shape = None if tools else shape_of(messages, prompt=prompt)
        known = [] if shape is None else self.skeletons.get(shape, [])
        if known:
            text = self.locator.render(messages, tools, prompt=prompt)
            for skeleton in known:
                filled = fill(skeleton, messages, text)
                if filled is not None:
                    return filled
        conversation = self._search(messages, tools, prompt)
        skeleton_found = learn(conversation, messages)
        if shape is not None and skeleton_found is not None and len(self.skeletons) < _MOST_SHAPES:
            self.skeletons[shape] = [skeleton_found, *known[: _MOST_SKELETONS - 1]]
        return conversation

    def _search(self, messages: Messages, tools: list[Any] | None, prompt: bool) -> Conversation:
        located = self.locator.locate(messages, tools, prompt=prompt)
        occupied = sorted(region for regions in located.regions for region in regions)
        turns: list[Turn] = []
        append: str | None = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            inside = located.regions[number]
            if not inside and not message.get("tool_calls"):
                continue
            before = messages[:number]
            begin = self._begin(before, tools, located, inside, occupied)
            start, content_end = (inside[0].start, inside[-1].end) if inside else (begin, begin)
            following = min(
                (region.start for region in occupied if region.start >= content_end), default=None
            )
            is_last = number == len(messages) - 1 and not prompt
            after = located.text[content_end:following]
            marker, append = self._marker(messages, number, tools, after, is_last)
            turns.append(Turn(number, begin, start, content_end, content_end + len(marker)))
        _check_order(turns)
        return Conversation(located.text, located, turns, append)

    def _begin(
        self,
        before: Messages,
        tools: list[Any] | None,
        located: Located,
        inside: list[Region],
        occupied: list[Region],
    ) -> int:
        """Return where the model would begin to write: the end of the generation prompt, if it is printed here."""
        number = len(before)
        try:
            prompt = self.locator.locate(before, tools, prompt=True)
        except TemplateError:
            prompt = None
        if inside:
            limit = inside[0].start
            floor = max((region.end for region in occupied if region.end <= limit), default=0)
        else:
            floor = max((region.end for regions in located.regions[:number] for region in regions), default=0)
            limit = min(
                (region.start for region in occupied if region.start >= floor), default=len(located.text)
            )
        if prompt is not None:
            header = _tail(prompt)
            if located.text[floor:limit].startswith(header):
                return floor + len(header)
        if inside:
            return limit
        raise TemplateError(
            f"cannot tell where an answer without text begins in chat template {self.locator.renderer.name!r}",
            _LEAVE_OUT,
        )

    def _marker(
        self, messages: Messages, number: int, tools: list[Any] | None, after: str, is_last: bool
    ) -> tuple[str, str | None]:
        """Return the end marker in `after`, the text behind a content, and what to append where it is missing."""
        roles = tuple((m["role"], bool(m.get("tool_calls"))) for m in messages[: number + 2])
        key = (roles, is_last, bool(tools))
        has_calls = bool(messages[number].get("tool_calls"))
        closing = None if has_calls else self.closings.get(key)
        if closing is None or not after.startswith(closing.last if is_last else closing.middle):
            closing = self.closing(messages, number, tools, after, is_last)
            if not has_calls:
                self.closings[key] = closing
        marker = closing.last if is_last else closing.middle
        if marker or not is_last:
            return marker, ""
        return marker, closing.middle or None

    def closing(
        self,
        messages: Messages,
        number: int,
        tools: list[Any] | None,
        after: str | None = None,
        is_last: bool = False,
    ) -> Closing:
        """Compare what follows an answer at the end of a conversation with what follows where it goes on."""
        upto = list(messages[: number + 1])
        ended = after if is_last and after is not None else self._after(upto, tools)
        going_on = (
            after if not is_last and after is not None else self._after([*upto, _QUESTION], tools, number)
        )
        if ended is None or going_on is None:
            known = ended if going_on is None else going_on
            return Closing("", "") if known is None else self._closing_alone(known, upto, tools)
        if ended.strip() and going_on.startswith(ended.rstrip()):
            return Closing(ended.rstrip(), ended.rstrip())
        shared = self._without_openers(self._common(ended, going_on))
        if shared:
            return Closing(shared, shared)
        last = self._without_dangling(ended, upto, tools)
        return Closing(self._middle(going_on, upto, tools), last)

    def _middle(self, going_on: str, upto: Messages, tools: list[Any] | None) -> str:
        """Return the marker of a turn that has one only where the conversation goes on, such as a separator."""
        asked = self._after(upto, tools, prompt=True)
        if asked is None:
            return ""
        shared = self._without_openers(self._common(asked, going_on))
        return shared if self.tokenizer.added_pattern.search(shared) else ""

    def _closing_alone(self, text: str, upto: Messages, tools: list[Any] | None) -> Closing:
        """Judge by one text alone: the marker known from a plain conversation, if the text begins with it."""
        for closing in (self.plain, Closing("", "")):
            if all(text.startswith(marker) for marker in closing):
                return closing
        return Closing("", "")

    @cached_property
    def plain(self) -> Closing:
        """The end markers after a plain answer."""
        return self.closing([_QUESTION, _ANSWER], 1, None)

    @cached_property
    def openers(self) -> frozenset[str]:
        """The tokens that open the first turn of a conversation: they cannot close one."""
        texts = []
        for messages in ([_QUESTION], [_SYSTEM, _QUESTION]):
            try:
                located = self.locator.locate(messages)
            except TemplateError:
                continue
            first = min((region.start for regions in located.regions for region in regions), default=0)
            texts.append(located.text[:first])
        return frozenset(token for text in texts for token in self._first_tokens(text))

    def _first_tokens(self, text: str) -> list[str]:
        """Return the tokens that a text begins with, before any other text."""
        found = []
        while (token := self.tokenizer.added_pattern.match(text)) is not None:
            found.append(token.group())
            text = text[token.end() :].lstrip()
        return found

    def _after(
        self, messages: Messages, tools: list[Any] | None, number: int | None = None, *, prompt: bool = False
    ) -> str | None:
        """Return the text between the content of message `number` and the next content; None if it cannot be told."""
        number = len(messages) - 1 if number is None else number
        try:
            located = self.locator.locate(messages, tools, prompt=prompt)
        except TemplateError:
            return None
        inside = located.regions[number]
        if inside:
            end = inside[-1].end
        elif messages[number].get("tool_calls"):
            end = max((r.end for regions in located.regions[:number] for r in regions), default=0)
        else:
            return None
        following = [r.start for regions in located.regions for r in regions if r.start >= end]
        return located.text[end : min(following, default=None)]

    def _common(self, one: str, other: str) -> str:
        """Return what two texts begin with, cut back to the end of a token the vocabulary names, or of a line."""
        shared = os.path.commonprefix([one, other])
        ends = [0, shared.rfind("\n") + 1]
        ends += [
            found.end()
            for found in self.tokenizer.added_pattern.finditer(other)
            if found.end() <= len(shared)
        ]
        return shared[: max(ends)]

    def _without_openers(self, text: str) -> str:
        """Return a marker without white space at its end and without the tokens that open the next turn."""
        text = text.rstrip()
        for opener in sorted(self.openers, key=len, reverse=True):
            if text.endswith(opener):
                return self._without_openers(text[: -len(opener)])
        return text

    def _without_dangling(self, ended: str, upto: Messages, tools: list[Any] | None) -> str:
        """Return what closes the last turn, without a header that invites the next answer."""
        try:
            header = _tail(self.locator.locate(upto[:-1], tools, prompt=True)).strip()
        except TemplateError:
            header = ""
        text = ended.rstrip()
        if header and text.endswith(header):
            text = text[: -len(header)].rstrip()
        return text


def _tail(located: Located) -> str:
    """Return the text behind the last content."""
    return located.text[max((r.end for regions in located.regions for r in regions), default=0) :]


def _check_order(turns: Sequence[Turn]) -> None:
    done = 0
    for turn in turns:
        if not done <= turn.begin <= turn.start <= turn.content_end <= turn.end:
            raise TemplateError(
                "the answers stand in another order in the text than in the conversation", _LEAVE_OUT
            )
        done = turn.end
