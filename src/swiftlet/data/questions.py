"""Rows that are asked and not trained on: they may end with their question. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from swiftlet.data.columns import ANSWERS, CHATS, first_set, holds_something, how_empty
from swiftlet.data.formats import to_sample
from swiftlet.data.mapping import of_rows, rename
from swiftlet.data.reasons import RowFault
from swiftlet.data.roles import ASSISTANT
from swiftlet.data.rows import BadRow, Record, Sample
from swiftlet.data.toolcalls import parsed

UNKNOWN = "?"  # stands for the answer until the row is read


def to_question(record: Record, columns: Mapping[str, str]) -> Sample | BadRow:
    """Return what `to_sample` does, and of a row without an answer its turns up to the question or a tool's result."""
    sample = to_sample(record, columns)
    if not isinstance(sample, BadRow):
        return sample
    try:
        row = rename(record.row, of_rows(columns))
        answered = to_sample(record._replace(row=_answered(row)), columns)
    except RowFault:
        return sample
    if isinstance(answered, BadRow) or not answered.messages:
        return sample
    return replace(answered, messages=answered.messages[:-1])


def _answered(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with one more answer.

    Raises:
        RowFault: it has one, so that this is not what it lacks.
    """
    chat = first_set(row, CHATS)
    if chat is not None:
        turns = parsed(row[chat], chat)
        if isinstance(turns, list):
            return {**row, chat: [*turns, {"role": ASSISTANT, "content": UNKNOWN}]}
    if any(holds_something(row.get(name)) and not _is_blank(row[name]) for name in ANSWERS):
        raise RowFault("schema", "the row has an answer")
    return {**{name: value for name, value in row.items() if name not in ANSWERS}, "response": UNKNOWN}


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and bool(how_empty(value))
