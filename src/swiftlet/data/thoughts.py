"""Thoughts that stand beside an answer, in a key of their own, written into it as the chat template prints them.

A template that prints them prints the same text for an answer which begins with the thought between its tags; so the
place and the labels of a thought are found as those of any answer. Where the two texts differ, the thought is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from swiftlet.data.chat import REASONING_KEYS, THOUGHT, Message
from swiftlet.data.endmarkers import around_thought
from swiftlet.data.rendering import Renderer, TemplateError, as_template_message

UNUSED, LEFT_OUT = "reasoning_unused", "reasoning_left_out"


@dataclass(frozen=True)
class Thoughts:
    """How one template prints thoughts."""

    renderer: Renderer

    def written(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None
    ) -> tuple[list[Message], tuple[str, ...]]:
        """Return messages whose thoughts are part of their contents, and codes for those that are left out."""
        plain = [{key: value for key, value in message.items() if key != THOUGHT} for message in messages]
        if not self._form:
            return plain, (UNUSED,)
        thoughts = [message.get(THOUGHT, "") for message in messages]
        # white space around it may be printed from its key, and not from an answer: then it is learnt without
        for texts in (thoughts, [thought.strip() for thought in thoughts]):
            printed = self._printed(plain, texts, tools)
            if any(printed):
                shown = [self._with_thought(*parts) for parts in zip(plain, printed, strict=True)]
                return shown, () if list(map(bool, printed)) == list(map(bool, thoughts)) else (LEFT_OUT,)
        return plain, (UNUSED,)

    def _printed(
        self, messages: Sequence[Message], thoughts: Sequence[str], tools: list[Any] | None
    ) -> list[str]:
        """Return those of the thoughts that are printed as part of an answer is, '' for the others."""
        none = ["" for _ in messages]
        shown = [as_template_message(message) for message in messages]
        beside = [
            {**message, **dict.fromkeys(REASONING_KEYS, thought)} if thought else message
            for message, thought in zip(shown, thoughts, strict=True)
        ]
        try:
            text = self.renderer.render(beside, tools)
            printed = [self._as_printed(thought, text) for thought in thoughts]
            written = [self._with_thought(*parts) for parts in zip(shown, printed, strict=True)]
            return printed if self.renderer.render(written, tools) == text else none
        except TemplateError:
            return none

    def _as_printed(self, thought: str, text: str) -> str:
        """Return a thought as it stands in a text, with the white space around it or without, '' where it does not."""
        before, between = self._form
        forms = (thought, thought.strip()) if thought else ()
        return next((form for form in forms if before + form + between in text), "")

    def _with_thought(self, message: Message, thought: str) -> Message:
        if not thought:
            return message
        before, between = self._form
        return {**message, "content": before + thought + between + message["content"]}

    @cached_property
    def _form(self) -> tuple[str, ...]:
        """What is printed before a thought and between it and the answer; nothing where no tag opens a thought."""
        before, between = around_thought(self.renderer)
        places = [before.rfind(tag) for tag in self.renderer.tags() if before.rstrip().endswith(tag)]
        return (before[min(places) :], between) if places else ()
