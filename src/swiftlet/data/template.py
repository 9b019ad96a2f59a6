"""A conversation to token ids and labels, by the model's own chat template or a named one.

Every answer and its end marker is trained on, and nothing else. Where the template prints no end marker after the
last answer, the marker it prints after earlier ones, or else the end-of-sequence token, is put there: a model must
learn to stop. What the template does to a text (strips it, leaves it out) is noted, and noted rows are counted.

A model without a chat template is taught plain continuation (`default-generation`): question, answer, end token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from swiftlet import log
from swiftlet.data.chat import THOUGHT
from swiftlet.data.endmarkers import EndMarkers
from swiftlet.data.named_templates import named_template, needs
from swiftlet.data.rendering import LEAVE_OUT_OR_CHANGE, Renderer, TemplateError, source_of
from swiftlet.data.rows import IGNORE_INDEX, Encoded, Sample
from swiftlet.data.segments import encode_conversation
from swiftlet.data.skeleton import Conversation, altered_texts
from swiftlet.data.spans import Locator
from swiftlet.data.system_message import check_system, without_system
from swiftlet.data.thoughts import Thoughts, thoughts_of
from swiftlet.data.tokenizer import Tokenizer
from swiftlet.data.tooltext import ToolText, end_of_calls, with_form_of_calls
from swiftlet.data.turns import TurnFinder
from swiftlet.errors import UsageError, describe

__all__ = ["Template", "TemplateError", "build_template"]
PLAIN = "default-generation"
_CODE_VERSION = 10


@dataclass(frozen=True)
class Template:
    """A chat template with the tokenizer and the system message it works with; travels to other processes.

    Args:
        system: put before a conversation that has no system message; None for the template's own default.
        chat, tool_use: the template for plain conversations and for those with tools.
    """

    name: str
    tokenizer: Tokenizer
    system: str | None
    chat: Renderer
    tool_use: Renderer

    @property
    def printed_date(self) -> str:
        """The day that the template may print, as ISO 8601 has it; empty where it prints none."""
        is_dated = "strftime_now" in self.chat.source + self.tool_use.source
        return self.chat.now.date().isoformat() if is_dated else ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides over ids and labels: template, tokenizer, system message, a printed date."""
        parts = [_CODE_VERSION, self.chat.source, self.tool_use.source, self.chat.parts, self.system]
        parts += [self.tokenizer.fingerprint, list(self.tokenizer.control), sorted(self.chat.tokens.items())]
        parts += [self.printed_date] if self.printed_date else []
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()

    @cached_property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end an answer: the template's end markers, EOS, and the end of calls where it is another."""
        plain, calls = self._finders[False].end_markers.plain_ids, end_of_calls(self._finders[True])
        ids = [*plain, self.tokenizer.eos_id, calls]
        return list(dict.fromkeys(one for one in ids if one is not None and one not in self.thoughts.markers))

    @cached_property
    def thoughts(self) -> Thoughts:
        """How the template prints what is thought before an answer."""
        return thoughts_of(self._finders[False].end_markers)

    @property
    def unprinted_prompt(self) -> str:
        """What the prompt for an answer ends with and a plain answer has not before it; '' for nothing."""
        return self._finders[False].unprinted_prompt()

    def encode(self, sample: Sample) -> Encoded:
        """Return token ids and labels of a sample, in full length.

        Raises:
            TemplateError: the sample cannot be rendered, or its answers cannot be found in the text for certain.
        """
        return self.encode_noted(sample)[0]

    def encode_noted(self, sample: Sample) -> tuple[Encoded, tuple[str, ...]]:
        """Return `encode(sample)` and codes for what the template did to the texts of the sample.

        Raises:
            TemplateError: as `encode`.
        """
        input_ids, labels, notes = self.encode_arrays(sample)
        return Encoded(input_ids.tolist(), labels.tolist()), notes

    def encode_arrays(self, sample: Sample) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Return what `encode_noted` does, ids and labels as int32 arrays of their own.

        Raises:
            TemplateError: as `encode`.
        """
        if sample.text is not None:
            ids = self._encode_text(sample.text)
            return ids, ids.copy(), ()
        messages, tools, notes = self._fit(sample.messages, sample.tools)
        conversation, rendered = self._found(messages, tools)
        input_ids, labels = encode_conversation(self.tokenizer, self._closed(conversation), rendered, tools)
        if conversation.append != "":
            end = np.asarray(self._end_ids(conversation.append), np.int32)
            is_trained = messages[conversation.turns[-1].message].get("loss") is not False
            input_ids = np.concatenate([input_ids, end])
            labels = np.concatenate([labels, end if is_trained else np.full_like(end, IGNORE_INDEX)])
        if (labels == IGNORE_INDEX).all():
            raise TemplateError(
                "no token of the row would be trained on", LEAVE_OUT_OR_CHANGE, reason="no_label_tokens"
            )
        return input_ids, labels, tuple(sorted({*notes, *altered_texts(conversation, messages)}))

    def encode_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None = None
    ) -> list[int]:
        """Return the token ids of a conversation up to the place where the next answer begins.

        Raises:
            TemplateError: as `encode`.
        """
        shown, shown_tools, _ = self._fit(messages, tools)
        conversation, rendered = self._found(shown, shown_tools, prompt=True)
        ids: list[int] = encode_conversation(self.tokenizer, conversation, rendered, shown_tools)[0].tolist()
        return ids

    def find(self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None = None) -> Conversation:
        """Return a conversation as rendered, and the characters of its answers.

        Raises:
            TemplateError: as `encode`.
        """
        return self._finders[bool(tools)].find(messages, tools)

    def show_ids(self, input_ids: Sequence[int], labels: Sequence[int]) -> str:
        """Return the decoded text of token ids, those without a label in brackets."""
        parts: list[str] = []
        start = 0
        for at in range(1, len(input_ids) + 1):
            if at < len(input_ids) and (labels[at] == IGNORE_INDEX) == (labels[start] == IGNORE_INDEX):
                continue
            text = self.tokenizer.decode(input_ids[start:at])
            parts.append(f"[{text}]" if labels[start] == IGNORE_INDEX else text)
            start = at
        return "".join(parts)

    @cached_property
    def _finders(self) -> dict[bool, TurnFinder]:
        found = {}
        for has_tools, renderer in ((False, self.chat), (True, self.tool_use)):
            locator = Locator(renderer, renderer.tags())
            found[has_tools] = TurnFinder(locator, EndMarkers(locator, self.tokenizer))
        return found

    def _with_system(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        shown = [dict(message) for message in messages]
        has_system = any(message["role"] == "system" for message in shown)
        return (
            [{"role": "system", "content": self.system}, *shown] if self.system and not has_system else shown
        )

    def _fit(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None
    ) -> tuple[list[dict[str, Any]], list[Any] | None, tuple[str, ...]]:
        """Return messages and tools as they are rendered, and codes for what of them became text or is not printed."""
        shown = self._with_system(messages)
        notes: tuple[str, ...] = ()
        if tools or any(message.get("tool_calls") for message in shown):
            shown, tools, notes = self._tool_texts[bool(tools)].fit(shown, tools)
        return shown, tools, notes

    def _found(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None, *, prompt: bool = False
    ) -> tuple[Conversation, Sequence[Mapping[str, Any]]]:
        """Return a conversation as rendered, and its messages: without thoughts where it cannot be told with them."""
        find = self._finders[bool(tools)].find
        try:
            return find(messages, tools, prompt=prompt), messages
        except TemplateError:
            if not any(message.get(THOUGHT) for message in messages):
                raise
        plain = [{key: value for key, value in message.items() if key != THOUGHT} for message in messages]
        return find(plain, tools, prompt=prompt), plain

    @cached_property
    def _tool_texts(self) -> dict[bool, ToolText]:
        return {False: ToolText(self.chat), True: ToolText(self.tool_use)}

    def _encode_text(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text, split_special=True)
        if self.tokenizer.adds_bos and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id, *ids]
        if self.tokenizer.eos_id is not None:
            ids = [*ids, self.tokenizer.eos_id]
        return np.asarray(ids, np.int32)

    def _closed(self, conversation: Conversation) -> Conversation:
        """Cut off what the template prints after a last answer that has no end marker: the marker takes its place."""
        if conversation.append == "" or not conversation.turns:
            return conversation
        return conversation._replace(text=conversation.text[: conversation.turns[-1].end])

    def _end_ids(self, marker: str | None) -> list[int]:
        if marker is not None:
            return self.tokenizer.encode(marker)
        return [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


def build_template(
    tokenizer: Tokenizer, *, name: str | None = None, system: str | None = None, now: datetime | None = None
) -> Template:
    """Make the template of a tokenizer, or the named one, ready for use.

    Args:
        name: a template of the table in place of the tokenizer's own.
        system: put before conversations without a system message; None for the template's own default, '' for none.
        now: the moment that templates which print a date see; the clock stands still there. By default this day's
            beginning: by the time of day, as Hunyuan's prints it, the same rows would be others at each start.

    Raises:
        UsageError: no template has this name, the vocabulary lacks its tokens, or the template comes to no end.
        TemplateError: the template refuses the system message, or is itself in error.
    """
    chosen, chat_source, tool_source = _sources(tokenizer, name)
    moment = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0) if now is None else now
    chat = Renderer(chosen, chat_source, dict(tokenizer.special_tokens), moment)
    chat = _with_parts_if_needed(chat)
    chat, tool_use = (
        with_form_of_calls(replace(chat, source=source)) for source in (chat_source, tool_source)
    )
    template = Template(chosen, tokenizer, system, chat, tool_use)
    if system:
        check_system(chat, system)
    if system == "":
        finders = template._finders.values()
        chat, tool_use = (without_system(one.locator.renderer, one.end_markers) for one in finders)
        return replace(template, system=None, chat=chat, tool_use=tool_use)
    return template


def _sources(tokenizer: Tokenizer, name: str | None) -> tuple[str, str, str]:
    """Return the template's name and its Jinja text for plain conversations and for those with tools."""
    own = source_of(tokenizer.chat_template)
    if name is None and own is not None:
        return tokenizer.folder.name or "own", own, source_of(tokenizer.chat_template, tools=True) or own
    if name is None and tokenizer.chat_template:
        raise UsageError(
            f"the tokenizer's chat templates are named {describe(', '.join(tokenizer.chat_template))}, "
            "and none of them default",
            "choose another with --template_type, or save the one that is meant as chat_template.jinja in "
            f"{tokenizer.folder}",
        )
    if name is None:
        log.info(
            f"the tokenizer has no chat template: {PLAIN} is used (question, answer, end token, with nothing between); "
            "choose another with --template_type"
        )
    named = named_template(name or PLAIN)
    needs(named, name or PLAIN, {token: tokenizer.id_of(token) is not None for token in named.control})
    return name or PLAIN, named.source, named.source


def _with_parts_if_needed(renderer: Renderer) -> Renderer:
    """Return the renderer, with contents as lists of parts where the template takes nothing else."""
    messages = [{"role": "user", "content": "question-17"}, {"role": "assistant", "content": "answer-71"}]
    for candidate in (renderer, replace(renderer, parts=True)):
        try:
            text = candidate.render_first(messages)
        except TemplateError:
            continue
        if "question-17" in text and "answer-71" in text:
            return candidate
    return renderer
