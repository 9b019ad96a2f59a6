"""Tools and their calls as plain text, for chat templates that print none: they would be lost from a row otherwise.

A call becomes `<tool_call>`, the call as JSON and `</tool_call>`, each on a line of its own, behind the text of its
answer; what a tool answered becomes a question between `<tool_response>` tags; the descriptions of the tools go behind
the system message. What a template prints itself is left to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from swiftlet.data.endmarkers import ANSWER, QUESTION, TOOL
from swiftlet.data.rendering import Renderer, TemplateError, as_template_message, called_name
from swiftlet.data.turns import TurnFinder

Message = dict[str, Any]
# what is tried with each template
_ID, _NAME, _TEXT = "abcdefghi", "look_up_17", "a text 53"
_FUNCTION = {"name": _NAME, "arguments": {"x": "y"}}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": _ID, "type": "function", "function": _FUNCTION}],
}

_CALLS: Message = {
    **_CALL,
    "tool_calls": [{**_CALL["tool_calls"][0], "id": number} for number in (_ID, _ID[::-1])],
}

_INTRODUCTION = "You can call these tools; each line describes one in JSON:"
_FORM = (
    "To call one, write its name and arguments like this:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
)


@dataclass(frozen=True)
class ToolText:
    """What one template prints of tools, and how the rest is put into the messages."""

    renderer: Renderer

    def fit(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None
    ) -> tuple[list[Message], list[Any] | None, tuple[str, ...]]:
        """Return messages and tools as the template takes them, and codes for what became text or was left out."""
        shown, notes = [dict(message) for message in messages], []
        lost = [
            message for message in shown if message.get("tool_calls") and not self._prints_calls_of(message)
        ]
        if lost:
            shown = [_with_calls_as_text(message) if message in lost else message for message in shown]
            notes.append("calls_as_text")
        if (
            any(message.get("tool_calls") for message in shown)
            and self.needs_ids
            and self._refuses_ids(shown)
        ):
            shown = _with_ids(shown)
            notes.append("call_ids_made")
        if any(message["role"] == "tool" for message in shown) and not self.prints_results:
            shown = _with_results_as_text(shown)
            notes.append("results_as_text")
        if tools and not self.prints_tools:
            notes.append("tools_as_text" if self.takes_system else "tools_left_out")
            shown = _with_tools_as_text(shown, tools) if self.takes_system else shown
            tools = None
        return shown, tools, tuple(notes)

    @cached_property
    def prints_calls(self) -> bool:
        """Whether a call in an answer is printed; True as well where the template refuses every way to try it."""
        return {None if text is None else _NAME in text for text in self._texts_of_calls} - {None} != {False}

    def _prints_calls_of(self, message: Message) -> bool:
        return self.prints_calls and (not message.get("content") or self._prints_calls_beside_text)

    @cached_property
    def _prints_calls_beside_text(self) -> bool:
        """Whether a call is printed beside a text; True as well where the template refuses to try it."""
        return self._is_printed(_NAME, [QUESTION, {**_CALL, "content": "c"}]) is not False

    @cached_property
    def shows_json(self) -> bool:
        """Whether a call is printed, and its arguments not as Python prints an object."""
        return any(
            text is not None and _NAME in text and str(_FUNCTION["arguments"]) not in text
            for text in self._texts_of_calls
        )

    @property
    def length_of_call(self) -> float:
        """The length of a conversation that ends with a call without a text, infinite where it is not printed."""
        text = self._texts_of_calls[0]
        return len(text) if text is not None and _NAME in text else math.inf

    @cached_property
    def _texts_of_calls(self) -> list[str | None]:
        """Conversations with a call as they are printed, None for those that the template refuses."""
        result = {"role": "tool", "content": "r", "tool_call_id": _ID, "name": _NAME}
        called = [QUESTION, {**_CALL, "content": "c"}]
        ways = ([QUESTION, _CALL], called, [*called, result, ANSWER], [QUESTION, _CALL, result, ANSWER])
        return [self._printed(messages) for messages in ways]

    @cached_property
    def needs_ids(self) -> bool:
        """Whether the template takes calls with ids and answers of tools that name them, and none without."""
        return self._takes_id(_ID) and not self._takes_id(None)

    def _takes_id(self, number: str | None) -> bool:
        """Whether the template takes a call with this id, or without one, and an answer of a tool to it."""
        asked, result = {"type": "function", "function": _FUNCTION}, {"role": "tool", "content": "r"}
        if number is not None:
            asked, result = {**asked, "id": number}, {**result, "tool_call_id": number}
        turn = {"role": "assistant", "content": "", "tool_calls": [asked]}
        return self._is_printed(_NAME, [QUESTION, turn, result, ANSWER]) is not None

    def _refuses_ids(self, messages: Sequence[Message]) -> bool:
        """Whether a call of the row has no id, or one that the template refuses, such as one of another length."""
        calls = [call for message in messages for call in message.get("tool_calls") or ()]
        return not all("id" in call and self._takes_id(call["id"]) for call in calls)

    @cached_property
    def prints_results(self) -> bool:
        """Whether what a tool answered is printed, behind an answer that calls it as the template prints calls."""
        asked = {**_CALL, "content": "c"} if self.prints_calls else ANSWER
        result = {"role": "tool", "content": _TEXT, "tool_call_id": _ID, "name": _NAME}
        return bool(self._is_printed(_TEXT, [QUESTION, asked, result, ANSWER]))

    @cached_property
    def prints_tools(self) -> bool:
        """Whether the descriptions of tools are printed; True as well where the template refuses to try it."""
        return self._is_printed(called_name(TOOL), [QUESTION]) is not False

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message is printed."""
        return bool(self._is_printed(_TEXT, [{"role": "system", "content": _TEXT}, QUESTION], []))

    def _is_printed(
        self, text: str, messages: Sequence[Message], tools: Sequence[Any] = (TOOL,)
    ) -> bool | None:
        """Return whether a text is printed, None where the template refuses the conversation."""
        printed = self._printed(messages, tools)
        return None if printed is None else text in printed

    def _printed(self, messages: Sequence[Message], tools: Sequence[Any] = (TOOL,)) -> str | None:
        shown = [as_template_message(message) for message in messages]
        is_asked = messages[-1]["role"] != "assistant"
        try:
            return self.renderer.render(shown, list(tools), generation_prompt=is_asked)
        except TemplateError:
            return None


def with_form_of_calls(renderer: Renderer) -> Renderer:
    """Return the renderer with tool calls in the form that the template prints.

    Most take arguments as objects and a content of ''; some take JSON text, or print calls beside null alone, or print
    an empty answer of its own behind the calls where the content is not null: what is printed shorter has none.
    """
    for text_arguments in (False, True):
        found = [
            replace(renderer, text_arguments=text_arguments, null_content=null) for null in (False, True)
        ]
        fit = [one for one in found if ToolText(one).shows_json]
        if fit:
            return min(fit, key=lambda one: ToolText(one).length_of_call)
    return renderer


def _with_calls_as_text(message: Message) -> Message:
    calls = message.pop("tool_calls", None) or []
    texts = [
        message.get("content") or "",
        *(f"<tool_call>\n{_as_json(call)}\n</tool_call>" for call in calls),
    ]
    return {**message, "content": "\n".join(text for text in texts if text)}


def _with_ids(messages: Sequence[Message]) -> list[Message]:
    """Number the calls, in nine digits as Mistral's templates want them.

    Answers are to the calls whose ids they name, and where they name none, to those that come next.
    """
    shown: list[Message] = []
    open_ids: dict[str, str] = {}  # given, or made for a call without one -> made
    count = 0
    for message in messages:
        if message.get("tool_calls"):
            calls, open_ids = [], {}
            for call in message["tool_calls"]:
                count += 1
                made = f"{count:09d}"
                calls.append({**call, "id": made})
                open_ids[call.get("id", made)] = made
            shown.append({**message, "tool_calls": calls})
        elif message["role"] == "tool" and open_ids:
            named = message.get("tool_call_id")
            given = named if named in open_ids else next(iter(open_ids))
            shown.append({**message, "tool_call_id": open_ids.pop(given)})
        else:
            shown.append(message)
    return shown


def _with_results_as_text(messages: list[Message]) -> list[Message]:
    """Make questions of tools' answers, one of those that follow each other."""
    shown: list[Message] = []
    for number, message in enumerate(messages):
        if message["role"] != "tool":
            shown.append(message)
            continue
        text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
        if number and messages[number - 1]["role"] == "tool":
            text = f"{shown.pop()['content']}\n{text}"
        shown.append({"role": "user", "content": text})
    return shown


def _as_json(call: Mapping[str, Any]) -> str:
    arguments = call.get("function", call).get("arguments", {})
    return json.dumps({"name": called_name(call), "arguments": arguments}, ensure_ascii=False)


def _with_tools_as_text(messages: list[Message], tools: list[Any]) -> list[Message]:
    lines = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    text = "\n".join([_INTRODUCTION, *lines, _FORM])
    if messages and messages[0]["role"] == "system":
        first, *rest = messages
        return [{**first, "content": "\n\n".join(filter(None, [first.get("content"), text]))}, *rest]
    return [{"role": "system", "content": text}, *messages]


def end_of_calls(finder: TurnFinder) -> int | None:
    """Return the token that ends an answer of tool calls, None where it has none of its own.

    A token that is in the answer more often ends each of two calls; where the template takes one call alone, its last
    token ends the answer.
    """
    tokenizer = finder.end_markers.tokenizer
    for calls in (_CALLS, _CALL):
        try:
            found = finder.find([QUESTION, calls], [TOOL])
        except TemplateError:
            continue
        text = "".join(found.text[turn.begin : turn.end] for turn in found.turns).rstrip()
        last = tokenizer.added_pattern.findall(text)[-1:]
        is_end = last != [] and text.endswith(last[0]) and text.count(last[0]) == 1
        return tokenizer.id_of(last[0]) if is_end else None
    return None
