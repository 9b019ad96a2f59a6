"""What flows through the room: records of a source, bad rows, conversations, token ids with labels. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

IGNORE_INDEX = -100


class Origin(NamedTuple):
    """Where a row stands: `line` counts from 1 (rows of parquet and of JSON arrays count as lines), `byte` from 0."""

    path: str
    line: int
    byte: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class Record(NamedTuple):
    """One row of a source as it was read, before its shape is known."""

    row: dict[str, Any]
    origin: Origin


class BadRow(NamedTuple):
    """A row that cannot be trained on: a reason code, what is wrong with it, and a sha1 in the place of its text.

    `detail` names fields, columns and positions, and never holds the text of the row.
    """

    origin: Origin
    reason: str
    detail: str
    sha1: str


@dataclass(frozen=True)
class Sample:
    """One conversation, or a plain text to continue.

    Args:
        messages: dicts with `role` (system, user, assistant, tool) and `content`, and `tool_calls` or `loss` where
            the row had them; empty for plain text.
        tools: descriptions of the functions the assistant may call.
        text: a plain text of which every token is trained on; None for a conversation.
        notes: what was done to the row that the user should know, as codes that the report counts.
        columns: the columns, by our names, that the turns or the text stand in.
    """

    messages: list[dict[str, Any]]
    origin: Origin
    tools: list[Any] | None = None
    text: str | None = None
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class Encoded(NamedTuple):
    """Token ids and labels of one sample, of equal length; a label is its token, or IGNORE_INDEX."""

    input_ids: list[int]
    labels: list[int]
