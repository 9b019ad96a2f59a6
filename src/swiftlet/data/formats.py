"""One row of any known shape to one conversation, or to the reason why not. Never raises, never guesses a text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from swiftlet.data.chat import Message, add_thought, read_chat
from swiftlet.data.columns import (
    ANSWERS,
    ASKED,
    CHATS,
    MEDIA,
    NOTED,
    PREFERENCES,
    THOUGHTS,
    TOOLS,
    Columns,
    check_alone,
    check_choices,
    check_input,
    check_media,
    find_columns,
    first_set,
    holds_something,
    how_empty,
    learn_preferred,
    with_answer_beside,
)
from swiftlet.data.guesses import SYSTEMS, are_turns, has_role
from swiftlet.data.hints import not_a_text
from swiftlet.data.jsonlines import kind_of
from swiftlet.data.mapping import of_rows, of_turns, rename
from swiftlet.data.names import flag_of, in_file, named
from swiftlet.data.parts import content_of
from swiftlet.data.reasons import RowFault
from swiftlet.data.roles import ASSISTANT, SYSTEM, USER
from swiftlet.data.rows import BadRow, Record, Sample
from swiftlet.data.surrogates import check_text
from swiftlet.data.toolcalls import parsed, read_tools

# most rows have none of these, and one look at all names is cheaper than one each
UNUSUAL = frozenset({*MEDIA, *PREFERENCES}).union(*(names for names, _ in NOTED))
NO_TURN = frozenset(THOUGHTS)
NO_PAIR = frozenset({*CHATS, *SYSTEMS, *TOOLS})


def to_sample(record: Record, columns: Mapping[str, str]) -> Sample | BadRow:
    """Return the conversation or plain text of a row, or why it has none; `columns` are their names -> ours."""
    try:
        row = rename(record.row, of_rows(columns)) if columns else record.row
        sample = _read(row, record, columns)
        check_text(sample, row)
    except RowFault as fault:
        return BadRow(record.origin, fault.reason, fault.detail, row_sha1(record.row))
    except RecursionError:
        return BadRow(record.origin, "nesting", "nested too deep", row_sha1(record.row))
    return sample


def row_sha1(row: Mapping[str, Any]) -> str:
    """Return a sha1 that stands for the row in reports: of its JSON, or of its column names when that is too deep."""
    try:
        text = json.dumps(row, default=str)
    except (RecursionError, ValueError, TypeError):
        text = json.dumps(list(row))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _read(row: Mapping[str, Any], record: Record, columns: Mapping[str, str]) -> Sample:
    notes: set[str] = set()
    if not UNUSUAL.isdisjoint(row):
        _check_unusual(row, notes, is_mapped=not {"response", "messages"}.isdisjoint(columns.values()))
    chat = None if NO_PAIR.isdisjoint(row) else _chat_column(row)
    if chat is not None:
        try:
            messages = read_chat(row[chat], in_file(row, chat), notes, of_turns(columns))
        except RowFault as fault:
            raise with_answer_beside(fault, row, chat) from None
        _check_one_chat(row, chat, messages, of_turns(columns))
        _check_no_history(row, chat)
        used: tuple[str, ...] = (chat,)
    elif _is_plain_text(row) and ("role" not in row or "text" in columns.values()):
        messages = [{"role": ASSISTANT, "content": _text_of(row, "text", "empty_assistant")}]
        _check_no_history(row, "text")
        check_alone(row, columns)
        used = ("text",)
    else:
        messages, used = _pair(row, notes, of_turns(columns))
        check_choices(row, used, columns)
        check_input(row, used)
    if not NO_TURN.isdisjoint(row) and (thought := add_thought(messages, row, notes)):
        used = (*used, thought)
    tools = None
    if not NO_PAIR.isdisjoint(row) or "tools" in messages[0]:
        tools = _tools(row, messages)
        messages = _with_system(row, messages)
    if messages[0]["role"] == ASSISTANT:
        if tools:
            raise RowFault(
                "schema", "column tools beside a text without a question, which has no place for it"
            )
        noted = tuple(sorted(notes | {"no_prompt"}))
        return Sample([], record.origin, text=messages[0]["content"], notes=noted, columns=used)
    return Sample(messages, record.origin, tools, notes=tuple(sorted(notes)), columns=used)


def _tools(row: Mapping[str, Any], messages: list[Message]) -> list[Any] | None:
    """Return the tools of a row, or of its system turn, which gives them up."""
    name = next((name for name in TOOLS if row.get(name) is not None), TOOLS[0])
    tools = read_tools(row.get(name), named(row, name))
    of_turn = read_tools(messages[0].pop("tools", None))
    if tools and of_turn and tools != of_turn:
        raise RowFault("columns", f"column {named(row, name)} beside other tools in the system turn")
    return tools or of_turn


def _check_unusual(row: Mapping[str, Any], notes: set[str], *, is_mapped: bool) -> None:
    """Look at the columns that most data have not: media, preferences, and those that are not used."""
    check_media(row, "column")
    preference = first_set(row, PREFERENCES)
    if preference is not None and not is_mapped:
        what = f"column {preference}: preference data has no answer to be fine-tuned on"
        raise RowFault("preference", f"{what}{learn_preferred(row, preference)}")
    notes |= {note for names, note in NOTED if any(holds_something(row.get(name)) for name in names)}


def _chat_column(row: Mapping[str, Any]) -> str | None:
    """Return the column of the conversation, one with a list before one with a text; None when there is none."""
    found = [name for name in CHATS if name in row and row[name] not in (None, [], "")]
    return next((name for name in found if isinstance(row[name], list)), found[0] if found else None)


def _check_one_chat(
    row: Mapping[str, Any], chat: str, messages: list[Message], keys: Mapping[str, str]
) -> None:
    """Make sure that no other column holds a conversation that could be trained on in the place of this one."""
    for name in CHATS:
        if name == chat or not are_turns(row.get(name)):
            continue
        try:
            others = read_chat(row[name], in_file(row, name), set(), keys)
        except RowFault:  # a prompt alone, or no conversation
            continue
        if others != messages:
            both = ", ".join(named(row, one) for one in (chat, name))
            choose = " or ".join(flag_of(row, one, "messages") for one in (chat, name))
            raise RowFault("columns", f"ambiguous chat columns: {both}; choose with {choose}")


def _is_plain_text(row: Mapping[str, Any]) -> bool:
    return row.get("text") is not None and all(row.get(name) is None for name in (*ASKED, *ANSWERS))


def _pair(
    row: Mapping[str, Any], notes: set[str], keys: Mapping[str, str]
) -> tuple[list[Message], tuple[str, ...]]:
    """Return the messages of a question and an answer, with the history before them, and their columns."""
    empty_chat = next((name for name in CHATS if name in row), None)
    if "input_ids" in row and all(row.get(name) is None for name in ANSWERS):
        raise RowFault("tokenized", "already tokenized (column input_ids): text is expected")
    try:
        columns = find_columns(row)
    except RowFault as fault:
        if fault.reason == "schema" and empty_chat is not None:
            raise RowFault("schema", f"column {named(row, empty_chat)} is empty") from None
        raise
    used = (*columns.questions, columns.answer)
    if any(are_turns(row[name]) for name in columns.questions):
        return _turns_with_answer(row, columns, notes, keys), used
    answer = _text_of(row, columns.answer, "empty_assistant")
    if not columns.questions:
        return [{"role": ASSISTANT, "content": answer}], used
    question = _question(row, columns)
    if "context" in row and isinstance(row["context"], str) and row["context"].strip():
        notes.add("context_unused")
    turns: list[Message] = [{"role": USER, "content": question}, {"role": ASSISTANT, "content": answer}]
    return [*_history(row), *turns], used


def _turns_with_answer(
    row: Mapping[str, Any], columns: Columns, notes: set[str], keys: Mapping[str, str]
) -> list[Message]:
    """Return the messages of a question that is a list of turns, and of its answer: a text, or a list of turns."""
    name, *others = (name for name in columns.questions if row[name] not in (None, ""))
    if others:
        both = f"{named(row, name)} and {named(row, others[0])}"
        raise RowFault("columns", f"columns {both} are one question, and one of them is a list")
    answer = row[columns.answer]
    if isinstance(answer, dict) and has_role(answer):  # one turn, as preference data has it
        answer = [answer]
    if not are_turns(answer):
        answer = [{"role": ASSISTANT, "content": _text_of(row, columns.answer, "empty_assistant")}]
    _check_no_history(row, name)
    return read_chat([*row[name], *answer], in_file(row, name), notes, keys)


def _question(row: Mapping[str, Any], columns: Columns) -> str:
    texts = []
    for name in columns.questions:
        value = row[name]
        if value is not None:
            _check_kind(row, name)
            if not how_empty(value):
                texts.append(value)
    if not texts:
        are = "is" if len(columns.questions) == 1 else "are"
        raise RowFault(
            "empty_user", f"{' and '.join(named(row, name) for name in columns.questions)} {are} empty"
        )
    return "\n".join(texts)


def _text_of(row: Mapping[str, Any], name: str, reason: str) -> str:
    value = row[name]
    if value is None:
        raise RowFault(reason, f"column {named(row, name)} is null")
    _check_kind(row, name)
    if empty := how_empty(value):
        raise RowFault(reason, f"column {named(row, name)} is {empty}")
    return str(value)


def _check_kind(row: Mapping[str, Any], name: str) -> None:
    if not isinstance(row[name], str):
        what = f"column {named(row, name)} is {kind_of(row[name])}, not a text"
        raise RowFault("schema", f"{what}{not_a_text(row, name)}")


def _history(row: Mapping[str, Any]) -> list[Message]:
    if row.get("history") in (None, ""):
        return []
    name = named(row, "history")
    history = parsed(row["history"], name)
    if history is None:
        return []
    if not isinstance(history, list):
        raise RowFault("schema", f"{name} is {kind_of(history)}, expected a list of pairs")
    messages: list[Message] = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list):
            raise RowFault("schema", f"{name}[{index}] is {kind_of(pair)}, expected a question and an answer")
        if len(pair) != 2:
            raise RowFault(
                "schema", f"{name}[{index}] has {len(pair)} items, expected a question and an answer"
            )
        for part, role, reason in ((0, USER, "empty_user"), (1, ASSISTANT, "empty_assistant")):
            text = pair[part]
            if text is not None and not isinstance(text, str):
                raise RowFault("schema", f"{name}[{index}][{part}] is {kind_of(text)}, not a text")
            if empty := "null" if text is None else how_empty(text):
                raise RowFault(reason, f"{name}[{index}][{part}] is {empty}")
            messages.append({"role": role, "content": text})
    return messages


def _check_no_history(row: Mapping[str, Any], name: str) -> None:
    if "history" in row and _history(row):
        both = f"column {named(row, 'history')} beside column {named(row, name)}"
        raise RowFault("columns", f"{both}: put its turns into one chat")


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    name = first_set(row, SYSTEMS)
    if name is None:
        return messages
    system = content_of(row[name], 0, SYSTEM) if isinstance(row[name], list) else row[name]
    if not isinstance(system, str):
        raise RowFault("schema", f"column {named(row, name)} is {kind_of(system)}, not a text")
    if messages[0]["role"] == ASSISTANT:
        beside = "beside a text without a question, which has no place for it"
        raise RowFault("schema", f"column {named(row, name)} {beside}")
    if messages[0]["role"] != SYSTEM:
        return [{"role": SYSTEM, "content": system}, *messages]
    if messages[0]["content"] != system:
        raise RowFault(
            "role_order", f"column {named(row, name)} beside a system turn that says something else"
        )
    return messages
