"""The content of a turn: a text, or a list of parts, of which the first of an answer may be what was thought before."""

from __future__ import annotations

from typing import Any

from swiftlet.data.jsonlines import kind_of
from swiftlet.data.reasons import RowFault

MEDIA_PARTS = ("image", "video", "audio", "media")
TEXT_PARTS = {"text", "input_text", "output_text"}
THOUGHT_PARTS = ("thinking", "reasoning")  # their text stands under the same name


def content_of(value: Any, number: int, role: str) -> str | None:
    """Return the text of a turn: a text, a part that holds one, or such parts joined.

    Raises:
        RowFault: it holds media, or something else than text.
    """
    if value is None or isinstance(value, str):
        return value
    where = f"turn {number} ({role})"
    if isinstance(value, dict) and "text" in value:
        value = [value]
    if not isinstance(value, list):
        raise RowFault("schema", f"{where}: content is {kind_of(value)}, not a text")
    return "".join(_part(part, where) for part in value)


def split_thought(value: Any, number: int, role: str) -> tuple[str | None, Any]:
    """Return what the first part of an answer says that was thought before it, None for none, and the other parts.

    Raises:
        RowFault: that part holds no text.
    """
    first = value[0] if isinstance(value, list) and value else None
    name = first.get("type") if isinstance(first, dict) else None
    if not isinstance(first, dict) or name not in THOUGHT_PARTS:
        return None, value
    where = f"turn {number} ({role})"
    held = first[name] if first.get(name) is not None else first.get("text")
    thought = "".join(_part(part, where) for part in held) if held and isinstance(held, list) else held
    if not isinstance(thought, str):
        raise RowFault("schema", f"{where}: content part {name} holds no text")
    return thought, value[1:]


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RowFault("schema", f"{where}: a content part is {kind_of(part)}")
    kind = part.get("type", "text")
    name = kind[:24] if isinstance(kind, str) and kind[:24].isidentifier() else "of unknown type"
    if any(medium in name for medium in MEDIA_PARTS):
        raise RowFault("multimodal", f"{where}: multimodal content part {name}")
    if name not in TEXT_PARTS:
        raise RowFault("schema", f"{where}: content part {name} is not text{_instead(name)}")
    text = part.get("text") if part.get("text") is not None else part.get("value")
    if not isinstance(text, str):
        raise RowFault("schema", f"{where}: content part {name} holds no text")
    return text


def _instead(name: str) -> str:
    if "tool" in name:
        return "; write calls as tool_calls and results as turns of the role tool"
    return "; one is read, as the first part of an answer" if name in THOUGHT_PARTS else ""
