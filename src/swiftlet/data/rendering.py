"""A Jinja chat template made into a function from messages to text.

The environment is the sandbox that the tokenizers' templates are written for: the same whitespace rules, `tojson`,
`raise_exception`, `strftime_now`, loop controls, and `{% generation %}` blocks, which here mean nothing. The clock
stands still, so that two renderings of one conversation differ only where the conversations do. A rendering that comes
to no end is given up: loops and macros look at the time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from swiftlet.data.chat import THOUGHT
from swiftlet.data.columns import REASONING_KEYS
from swiftlet.errors import DataError, UsageError, describe

_RENDERING_FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip
LONGEST_S = 30  # a real template takes milliseconds
_DEADLINE, _IS_IN_TIME = "_swiftlet_deadline", "_swiftlet_is_in_time"
_TAG = re.compile(r"</?[\w:|▁｜.-]+>|\[/?[A-Z_]+\]")
_OF_DICT = frozenset(dir(dict))
# Their public attributes are all allowed, but for the methods of texts that look into what they are given.
_PLAIN_KINDS = (jinja2.runtime.LoopContext, jinja2.utils.Namespace)
_OF_STR = frozenset(dir(str)) - {"format", "format_map"}
# What a template may see of a message; our own marks, such as `loss`, are not for it.
_MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")

LEAVE_OUT = "leave such rows out with --bad_rows skip"
LEAVE_OUT_OR_CHANGE = f"{LEAVE_OUT}, or choose another template with --template_type"


class TemplateError(DataError):
    """A conversation whose tokens or labels cannot be told for certain.

    `reason` is the code under which such rows are counted.
    """

    def __init__(self, message: str, hint: str = "", *, reason: str = "template") -> None:
        super().__init__(message, hint)
        self.reason = reason


class _EndlessError(Exception):
    """A rendering has taken longer than any real one does."""


class _IgnoreGeneration(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body, lineno=line)]  # what is set inside is not known behind it


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _is_in_time(deadline: float) -> bool:
    if time.monotonic() > deadline:
        raise _EndlessError
    return True


def _with_glances(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """Return a parsed template in which all that can take long looks at the time: loops in loops, and recursion."""
    for_loops = list(tree.find_all(jinja2.nodes.For))
    blocks: list[jinja2.nodes.For | jinja2.nodes.Macro] = list(tree.find_all(jinja2.nodes.Macro))
    blocks += [loop for block in (*blocks, *for_loops) for loop in block.find_all(jinja2.nodes.For)]
    blocks += [loop for loop in for_loops if loop.recursive]
    for block in {id(block): block for block in blocks}.values():
        deadline = jinja2.nodes.Name(_DEADLINE, "load")
        glance = jinja2.nodes.Filter(deadline, _IS_IN_TIME, [], [], None, None)
        block.body.insert(0, jinja2.nodes.ExprStmt(glance, lineno=block.lineno))
    return tree


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which answers at once for what it allows anyway; most of a rendering are such questions."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        is_public = attribute[:1] != "_"
        if is_public and (kind in _PLAIN_KINDS or (kind is str and attribute in _OF_STR)):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_IgnoreGeneration, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.filters[_IS_IN_TIME] = _is_in_time
    environment.globals["raise_exception"] = _raise_exception
    try:
        code = environment.compile(_with_glances(environment.parse(source)))
        template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        # It is copied for each rendering, and a chain of dicts slowly.
        template.globals = dict(template.globals)
        return template
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"the chat template is not valid Jinja: {error.message} (line {error.lineno})",
            "mend the template, or give a named one with --template_type",
        ) from error


def as_template_message(
    message: Mapping[str, Any],
    content: str | None = None,
    names: Sequence[str] | None = None,
    thought: str | None = None,
) -> dict[str, Any]:
    """Return what the template may see of a message, with `content` in the place of its own when given.

    Args:
        names: likewise the names of the functions that its tool calls call.
        thought: likewise what was thought before it, which stands in every key that templates have for it.
    """
    shown = {key: message[key] for key in _MESSAGE_KEYS if message.get(key) is not None}
    shown["content"] = message.get("content") or "" if content is None else content
    if thought := message.get(THOUGHT) if thought is None else thought:
        shown |= dict.fromkeys(REASONING_KEYS, thought)
    if "tool_calls" in shown:
        calls = [_with_object_arguments(call) for call in shown["tool_calls"]]
        called = [called_name(call) for call in calls] if names is None else names
        shown["tool_calls"] = [_with_name(call, name) for call, name in zip(calls, called, strict=True)]
    return shown


def called_name(call: Mapping[str, Any]) -> str:
    """Return the name of the function that a tool call calls, '' where it has none."""
    function = call.get("function", call)
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _with_name(call: dict[str, Any], name: str) -> dict[str, Any]:
    if not called_name(call):
        return call
    return (
        {**call, "function": {**call["function"], "name": name}}
        if "function" in call
        else {**call, "name": name}
    )


def _with_object_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call whose arguments are an object, as templates expect, where they were JSON text."""
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": _with_object_arguments(function)}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return dict(call)
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else dict(call)
    return dict(call)


def _as_text_call(call: Mapping[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _as_text_call(call["function"])}
    arguments = call.get("arguments")
    return dict(call) if isinstance(arguments, str) else {**call, "arguments": _tojson(arguments)}


def _with_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}] if content else []}


@dataclass(frozen=True)
class Renderer:
    """A chat template with the special tokens and the date that it may print.

    Plain data only, so that it travels to worker processes; the compiled template is kept per process.

    Args:
        parts: True for a template that takes contents as lists of parts only, as those of vision models do.
        text_arguments: True for one that takes the arguments of a tool call as JSON text only.
        null_content: True for one that prints tool calls only where the content beside them is null.
    """

    name: str
    source: str
    tokens: Mapping[str, str]
    now: datetime
    parts: bool = False
    text_arguments: bool = False
    null_content: bool = False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[Any] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateError: the template refuses the conversation or is itself in error.
        """
        try:
            return _compile(self.source).render(
                messages=[self._as_taken(message) for message in messages],
                tools=tools or None,
                documents=None,
                add_generation_prompt=generation_prompt,
                strftime_now=self.now.strftime,
                **{_DEADLINE: time.monotonic() + LONGEST_S},
                **self.tokens,
            )
        except (_EndlessError, *_RENDERING_FAULTS) as error:
            roles = " ".join(str(message.get("role")) for message in messages[:8])
            fault = f"{type(error).__name__}: {describe(str(error), 200)}"
            if isinstance(error, _EndlessError):
                fault = f"it comes to no end in {LONGEST_S} s"
            raise TemplateError(
                f"chat template {self.name!r} cannot render a conversation of the roles {describe(roles)}: {fault}",
                LEAVE_OUT_OR_CHANGE,
            ) from error

    def _as_taken(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a message in the form that the template takes."""
        taken = _with_parts(message) if self.parts else message
        if not message.get("tool_calls"):
            return taken
        if self.text_arguments:
            taken = {**taken, "tool_calls": [_as_text_call(call) for call in message["tool_calls"]]}
        return {**taken, "content": None} if self.null_content and not message["content"] else taken

    def render_first(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of a short conversation.

        Raises:
            UsageError: it takes longer than any real template does.
            TemplateError: as `render` does.
        """
        try:
            return self.render(messages)
        except TemplateError as error:
            if isinstance(error.__cause__, _EndlessError):
                raise UsageError(
                    f"chat template {self.name!r} has not rendered a short conversation in {LONGEST_S} s",
                    "mend its loops, or choose another template with --template_type",
                ) from error
            raise

    def tags(self) -> tuple[str, ...]:
        """Return the tags the template's text names, such as <think>: it may look for them in a message."""
        return tuple(sorted(set(_TAG.findall(self.source)), key=len, reverse=True))


def source_of(chat_template: Any, tools: bool = False) -> str | None:
    """Return the Jinja text of a tokenizer's `chat_template`, which is a text or a dict of named texts."""
    if isinstance(chat_template, Mapping):
        wanted = "tool_use" if tools and "tool_use" in chat_template else "default"
        return chat_template.get(wanted)
    return chat_template
