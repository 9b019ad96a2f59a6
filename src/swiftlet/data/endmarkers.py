"""The end marker of an answer: what a template prints between its content and whatever comes next.

It is found by comparing what follows the answer when the conversation ends there with what follows when it goes on:
what the two share closes the turn, the rest is the header of the next one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from swiftlet.data.columns import REASONING_KEYS
from swiftlet.data.rendering import TemplateError, called_name
from swiftlet.data.spans import Located, Locator, Messages
from swiftlet.data.tokenizer import Tokenizer

QUESTION: dict[str, Any] = {"role": "user", "content": "q"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "a"}
# By the names that templates have for what was thought before an answer.
THOUGHTFUL: dict[str, Any] = {
    **dict.fromkeys(REASONING_KEYS, "thought-17"), "role": "assistant", "content": "answer-71",
}  # fmt: skip
SYSTEM: dict[str, Any] = {"role": "system", "content": "s"}
# templates for tools alone look for each of these keys
_PROPERTY = {"type": "string", "description": "d"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "describe_19",
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": _PROPERTY}, "required": ["x"]},
    },
}


def _results(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an answer to each of the tool calls of a message."""
    calls = message.get("tool_calls") or ()
    return [
        {"role": "tool", "content": "r", "tool_call_id": call.get("id", ""), "name": called_name(call)}
        for call in calls
    ]


class Closing(NamedTuple):
    """The end markers of a turn: where the conversation goes on after it, and where it ends with it."""

    middle: str
    last: str


class Around(NamedTuple):
    """The text up to the end of a content, that behind it up to the next one, and whether there is no next one."""

    upto: str
    after: str
    is_last: bool


@dataclass(frozen=True)
class EndMarkers:
    """Finds the end markers of one template."""

    locator: Locator
    tokenizer: Tokenizer

    def of(
        self,
        messages: Messages,
        number: int,
        tools: list[Any] | None,
        around: Around | None = None,
    ) -> Closing:
        """Return the end markers of answer `number`.

        Args:
            around: the text around the end of its content, where it is known; otherwise it is rendered.
        """
        upto = list(messages[: number + 1])
        ended = around.after if around is not None and around.is_last else self._ended(upto, tools, around)
        going_on = around.after if around is not None and not around.is_last else None
        for following in (_results(messages[number]), [QUESTION]):
            if going_on is None and following:
                going_on = self._after([*upto, *following], tools, number)
        if ended is None or going_on is None:
            known = ended if going_on is None else going_on
            return Closing("", "") if known is None else self._closing_alone(known, upto, tools)
        if ended.strip() and going_on.startswith(ended.rstrip()):
            last = ended.rstrip()
            # behind a call `ended` is not the marker alone, which may come only where the conversation goes on
            marker = self.plain.middle if messages[number].get("tool_calls") and not self.plain.last else ""
            return Closing(last + marker if going_on.startswith(last + marker) else last, last)
        if messages[number].get("tool_calls"):
            return self._behind_call(ended, going_on, upto, tools)
        shared = self._without_openers(self.common(ended, going_on))
        if shared:
            return Closing(shared, shared)
        last = self._without_openers(self._only_tokens(self._without_dangling(ended, upto, tools)))
        return Closing(self._middle(going_on, upto, tools), last)

    def _behind_call(self, ended: str, going_on: str, upto: Messages, tools: list[Any] | None) -> Closing:
        """Return the markers behind a call that is printed otherwise where the conversation goes on.

        The rest of the call stands before them. The marker of plain answers is the border wherever it is printed: what
        the two texts share may end before it, or where a tool's answer begins.
        """
        middle, last = self._through(self.plain.middle, going_on), self._through(self.plain.last, ended)
        shared = self._without_openers(self.common(ended, going_on))
        if not middle:
            middle = shared or self._middle(going_on, upto, tools)
        if not last:
            last = shared or self._without_dangling(ended, upto, tools)
        return Closing(middle, last)

    def _through(self, marker: str, text: str) -> str:
        """Return `text` up to the end of a marker that has a token of the vocabulary, '' where the turn has none."""
        marker = marker.strip()
        before, found, _ = (
            text.partition(marker) if self.tokenizer.added_pattern.search(marker) else ("", "", "")
        )
        return "" if any(opener in before for opener in self.openers) else before + found

    def _ended(self, upto: Messages, tools: list[Any] | None, around: Around | None) -> str | None:
        """Return the text behind the last content; one rendering does where all before it is printed as is known."""
        if around is not None:
            try:
                text = self.locator.render(upto, tools, prompt=False)
            except TemplateError:
                return None
            if text.startswith(around.upto):
                return text[len(around.upto) :]
        return self._after(upto, tools)

    def _middle(self, going_on: str, upto: Messages, tools: list[Any] | None) -> str:
        """Return the marker of a turn that has one only where the conversation goes on, such as a separator.

        It is what this place shares with where the template asks for the next answer, or with the end of a question;
        or else what stands before the header of the next question.
        """
        asked = self._after(upto, tools, prompt=True)
        questioned = self._after([QUESTION], self.plain_tools, prompt=True)
        shared = [self.common(text, going_on) for text in (asked, questioned) if text is not None]
        for text in (*shared, self._before_header(going_on)):
            marker = self._without_openers(text)
            if self.tokenizer.added_pattern.search(marker):
                return marker
        return ""

    def _before_header(self, going_on: str) -> str:
        """Return what stands in `going_on` before the header of a question, known from how a conversation begins."""
        begins = next(
            (text[: min(regions[-1]).start] for text, regions, *_ in self._beginnings if regions[-1]), ""
        )
        borders = {at for found in self.tokenizer.added_pattern.finditer(going_on) for at in found.span()}
        borders |= {at + 1 for at, character in enumerate(going_on) if character == "\n"}
        headers = (at for at in sorted({0, *borders}) if at < len(going_on))
        return going_on[: next((at for at in headers if begins.endswith(going_on[at:])), 0)]

    def _closing_alone(self, text: str, upto: Messages, tools: list[Any] | None) -> Closing:
        """Judge by one text alone: the marker known from a plain conversation, if it is there.

        Where this is the plain conversation, the template takes no second question: the marker is what stands there.
        """
        if upto == [QUESTION, ANSWER]:
            only = self._without_openers(self._only_tokens(self._without_dangling(text, upto, tools)))
            return Closing(only, only)
        middle, last = self.plain
        if upto[-1].get("tool_calls"):  # the rest of the call stands before the marker
            ends = [text.find(marker) + len(marker) if marker in text else 0 for marker in self.plain]
            return Closing(text[: ends[0]], text[: ends[1]])
        return self.plain if text.startswith(middle) and text.startswith(last) else Closing("", "")

    @cached_property
    def plain(self) -> Closing:
        """The end markers after a plain answer."""
        return self.of([QUESTION, ANSWER], 1, self.plain_tools)

    @cached_property
    def plain_ids(self) -> list[int]:
        """The last token of each end marker after a plain answer that has one."""
        found = [
            token for marker in self.plain for token in self.tokenizer.added_pattern.findall(marker)[-1:]
        ]
        return [number for token in found if (number := self.tokenizer.id_of(token)) is not None]

    @cached_property
    def plain_tools(self) -> list[Any] | None:
        """The tools that plain conversations are tried with: one where the template renders none without."""
        for tools in (None, [TOOL]):
            with suppress(TemplateError):
                self.locator.render([QUESTION, ANSWER], tools, prompt=False)
                return tools
        return None

    @cached_property
    def _beginnings(self) -> list[Located]:
        """A conversation's first question, behind nothing and behind a system message."""
        found = []
        for messages in ([QUESTION], [SYSTEM, QUESTION]):
            with suppress(TemplateError):
                found.append(self.locator.locate(messages, self.plain_tools))
        return found

    @cached_property
    def openers(self) -> frozenset[str]:
        """The tokens that open the first turn of a conversation: they cannot close one."""
        firsts = [
            min((region.start for inside in regions for region in inside), default=0)
            for _, regions, *_ in self._beginnings
        ]
        texts = [located.text[:first] for located, first in zip(self._beginnings, firsts, strict=True)]
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
        inside = located.printed(number)
        if not inside or (messages[number].get("tool_calls") and not located.calls):
            return None
        end = inside[-1].end
        printed = (region for other in range(len(messages)) for region in located.printed(other))
        following = [region.start for region in printed if region.start >= end]
        return located.text[end : min(following, default=None)]

    def common(self, one: str, other: str) -> str:
        """Return what two texts begin with, cut back to the end of a token the vocabulary names, or of a line."""
        shared = os.path.commonprefix([one, other])
        ends = [0, shared.rfind("\n") + 1]
        ends += [
            found.end()
            for found in self.tokenizer.added_pattern.finditer(other)
            if found.end() <= len(shared)
        ]
        return shared[: max(ends)]

    def _only_tokens(self, text: str) -> str:
        """Return the tokens that a text begins with: other text behind an answer may be anything but a marker."""
        found = re.match(rf"(?:\s*(?:{self.tokenizer.added_pattern.pattern}))*", text)
        return found.group() if found else ""

    def _without_openers(self, text: str) -> str:
        """Return a marker without white space at its end and without the tokens that open the next turn.

        Where one token ends texts and begins them, the first of its kind ends the answer.
        """
        text = text.rstrip()
        if text == self.tokenizer.special_tokens.get("eos_token"):
            return text
        for opener in sorted(self.openers, key=len, reverse=True):
            if text.endswith(opener):
                return self._without_openers(text[: -len(opener)])
        return text

    def _without_dangling(self, ended: str, upto: Messages, tools: list[Any] | None) -> str:
        """Return what closes the last turn, without a header that invites the next answer."""
        try:
            header = tail(self.locator.locate(upto[:-1], tools, prompt=True)).strip()
        except TemplateError:
            header = ""
        text = ended.rstrip()
        # an end token that is always there invites nobody
        if header and header != self.tokenizer.special_tokens.get("eos_token") and text.endswith(header):
            text = text[: -len(header)].rstrip()
        return text


def tail(located: Located) -> str:
    """Return the text behind the last content or name of a call."""
    printed = (region for number in range(len(located.regions)) for region in located.printed(number))
    return located.text[max((region.end for region in printed), default=0) :]
