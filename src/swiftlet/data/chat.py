"""Turns of a conversation, in any of the public notations, to messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swiftlet.data.columns import MEDIA, REASONING_KEYS, THOUGHTS, check_media, holds_something, how_empty
from swiftlet.data.guesses import are_texts, first_text
from swiftlet.data.hints import by_turns
from swiftlet.data.jsonlines import kind_of
from swiftlet.data.mapping import rename_turn
from swiftlet.data.names import flag, flag_of, in_file, named, shown
from swiftlet.data.parts import content_of, split_thought
from swiftlet.data.reasons import RowFault
from swiftlet.data.roles import ASSISTANT, CALL, ROLES, SYSTEM, TOOL, USER, check_order, other_roles, role_of
from swiftlet.data.toolcalls import parsed, read_calls

Message = dict[str, Any]
# the keys under which one object holds a question and its answer
PAIRS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("input", "output"),
    ("query", "response"),
    ("prompt", "response"),
    ("question", "answer"),
)
LOSS_KEYS = (
    "loss",
    "train",
    "training",
    "trainable",
    "weight",
    "loss_weight",
    "loss_mask",
    "output_with_loss",
)
# some tools mean by it what is trained on, others what is not, or only parts of a text
UNCLEAR_LOSS_KEYS = ("mask", "masked", "train_detail")
SPEAKER_KEYS = ("speaker", "sender", "author")  # whose values may be roles by other names
CONTENTS = frozenset({"content", "value", "text"})
THOUGHT = "thought"  # our own key of what was thought before an answer
NUM_NAMES = 12
AS_OBJECT = 'write each turn as {"role": ..., "content": ...}'


def read_chat(value: Any, name: str, notes: set[str], keys: Mapping[str, str] | None = None) -> list[Message]:
    """Return the messages of a conversation whose order is that of a chat, or the one answer that stands alone.

    Args:
        name: what the column is called in the file, for messages.
        notes: gets the codes of what was not used.
        keys: other names of the keys of a turn and of roles, theirs -> ours.

    Raises:
        RowFault: it cannot be trained on.
    """
    turns = parsed(value, name)
    if not isinstance(turns, list):
        raise RowFault("schema", f"{name} is {kind_of(turns)}, expected a list")
    if not turns:
        raise RowFault("schema", f"{name} is an empty list")
    if are_texts(turns) and len(turns) > 1:
        made = f"where the texts are question and answer by turns: {by_turns(name, name)}"
        raise RowFault("schema", f"turn 0 is a text, expected an object: {AS_OBJECT}; {made}")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        try:
            renamed = rename_turn(turn, keys) if keys and isinstance(turn, dict) else turn
            for part in _split_pair(renamed, number):
                _add(messages, part, number, notes)
        except RowFault as fault:
            if fault.reason not in ("role_unknown", "schema") or "--columns" not in fault.detail:
                raise
            raise RowFault(fault.reason, f"{fault.detail}{other_roles(turns, number, keys or {})}") from None
    if not messages:  # a system turn that is null is none
        raise RowFault("no_answer", "only a system turn")
    is_alone = len(messages) == 1 and messages[0]["role"] == ASSISTANT
    if not is_alone or "tool_calls" in messages[0]:
        check_order(messages)
    _check_loss(messages)
    return messages


def _split_pair(turn: Any, number: int) -> list[dict[str, Any]]:
    """Return one turn, or those of a question and an answer that stand in one object, with a system text or without.

    What else stands in such an object, as whether it is trained on, is the answer's.
    """
    if not isinstance(turn, dict):
        raise RowFault("schema", f"turn {number} is {kind_of(turn)}, expected an object: {AS_OBJECT}")
    if not MEDIA.isdisjoint(turn):
        check_media(turn, f"turn {number}: key")
    pairs = [] if "role" in turn or "from" in turn else [keys for keys in PAIRS if turn.keys() >= {*keys}]
    if len(pairs) != 1 or "instruction" in turn:
        return [turn]
    question, answer = pairs[0]
    others = {key: value for key, value in turn.items() if key not in (question, answer, SYSTEM)}
    turns = [
        {"role": USER, "content": turn[question]},
        {**others, "role": ASSISTANT, "content": turn[answer]},
    ]
    if holds_something(turn.get(SYSTEM)):
        turns.insert(0, {"role": SYSTEM, "content": turn[SYSTEM]})
    return turns


def _add(messages: list[Message], turn: Mapping[str, Any], number: int, notes: set[str]) -> None:
    role, raw = _role_and_content(turn, number)
    if raw is None and CONTENTS.isdisjoint(turn) and not _has_calls(turn):
        raise RowFault("schema", _without(turn, f"turn {number} ({role}) has no content", "content"))
    if role == CALL:
        is_trained = _is_trained_on(turn, number, notes)
        _add_calls(messages, read_calls(raw, number), number, is_trained)
        return
    of_part, raw = split_thought(raw, number, role) if role == ASSISTANT else (None, raw)
    message: Message = {"role": role, "content": content_of(raw, number, role)}
    if role == ASSISTANT:
        _add_extras(message, turn, number, notes)
        of_key = next((turn[key] for key in REASONING_KEYS if holds_something(turn.get(key))), None)
        _add_thought(message, (of_part, of_key), f"turn {number}", notes)
    elif role == TOOL:
        message |= {key: turn[key] for key in ("tool_call_id", "name") if isinstance(turn.get(key), str)}
    elif role == SYSTEM and holds_something(turn.get("tools")):
        message |= {"content": message["content"] or "", "tools": turn["tools"]}
    _check_content(message, number)
    if role != SYSTEM or message["content"] is not None:
        messages.append(message)


def _role_and_content(turn: Mapping[str, Any], number: int) -> tuple[str, Any]:
    """Return the role of a turn and what it says, None where that is null or missing.

    Raises:
        RowFault: it has no role, or two that differ, or two contents of which one would be lost.
    """
    name, other = turn.get("role"), turn.get("from")
    if name is None and other is None:
        raise RowFault("schema", _without(turn, f"turn {number} has no role", "role"))
    role = role_of(other if name is None else name, number)
    if isinstance(other, str) and ROLES.get(other, role) != role:
        raise RowFault("columns", f"turn {number}: role and from say different things")
    content, value = turn.get("content"), turn.get("value")
    if "content" not in turn and "value" not in turn:
        return role, turn.get("text")
    if content is not None and value is not None and content != value:
        raise RowFault("columns", f"turn {number}: content and value say different things")
    return role, value if content is None else content


def _without(turn: Mapping[str, Any], what: str, ours: str) -> str:
    names = ", ".join(shown(name) for name in sorted(in_file(turn, key) for key in turn)[:NUM_NAMES])
    return f"{what} (its keys: {names}); name it with {_flags(turn, ours)}"


def _flags(turn: Mapping[str, Any], ours: str) -> str:
    """Return the flags that name the key that is missing, and that of the content beside an unknown role."""
    texts = [key for key, value in turn.items() if isinstance(value, str) and key not in ("role", "from")]
    roles = [key for key in texts if turn[key] in ROLES] or [key for key in texts if key in SPEAKER_KEYS]
    if ours == "content":
        parts = texts or [key for key, value in turn.items() if isinstance(value, list)]
        return flag_of(turn, parts[0] if len(parts) == 1 else "KEY", "content")
    if len(roles) != 1:
        return f"{flag('KEY', 'role')}, or {AS_OBJECT}"
    contents = [key for key in texts if key != roles[0]]
    has_content = len(contents) != 1 or any(key in turn for key in CONTENTS - {roles[0]})
    return " ".join(
        [flag_of(turn, roles[0], "role"), *([] if has_content else [flag_of(turn, contents[0], "content")])]
    )


def _has_calls(turn: Mapping[str, Any]) -> bool:
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def _add_calls(
    messages: list[Message], calls: list[dict[str, Any]], number: int, is_trained: bool | None
) -> None:
    """Add calls to the assistant turn that they follow, or as a turn of their own."""
    if not calls:
        raise RowFault("empty_assistant", f"turn {number}: an empty tool call")
    if not messages or messages[-1]["role"] != ASSISTANT:
        messages.append({"role": ASSISTANT, "content": ""})
        if is_trained is not None:
            messages[-1]["loss"] = is_trained
    elif (messages[-1].get("loss") is False) != (is_trained is False):
        raise RowFault("schema", f"turn {number}: of a call and the answer before it, one is not trained on")
    messages[-1].setdefault("tool_calls", []).extend(calls)


def _add_extras(message: Message, turn: Mapping[str, Any], number: int, notes: set[str]) -> None:
    """Take over an assistant's tool calls, and whether it is trained on."""
    value = turn.get("tool_calls") if turn.get("tool_calls") is not None else turn.get("function_call")
    if value is not None and value != "":
        calls = read_calls(value, number)
        if calls:
            message["tool_calls"] = calls
            message["content"] = message["content"] or ""
    is_trained = _is_trained_on(turn, number, notes)
    if is_trained is not None:
        message["loss"] = is_trained


def _add_thought(message: Message, found: Sequence[Any], where: str, notes: set[str]) -> None:
    """Put what was thought before an answer beside it, where it is a text.

    Raises:
        RowFault: two thoughts were found that differ.
    """
    thoughts = [one for one in found if holds_something(one)]
    texts = [one for one in thoughts if isinstance(one, str) and not how_empty(one)]
    if len({*texts}) > 1:
        raise RowFault("columns", f"{where}: two thoughts before one answer say different things")
    if texts:
        message[THOUGHT] = texts[0]
    elif thoughts:
        notes.add("reasoning_unused")


def add_thought(messages: list[Message], row: Mapping[str, Any], notes: set[str]) -> str | None:
    """Put what a column says that was thought before the last answer beside it, and return the column, None for none.

    Raises:
        RowFault: the last turn says otherwise.
    """
    name = first_text(row, THOUGHTS)
    if name is None or messages[0]["role"] == ASSISTANT:  # a text without a question has no turns
        if any(holds_something(row.get(other)) for other in THOUGHTS):
            notes.add("reasoning_unused")
        return None
    answer, thought = messages[-1], row[name]
    is_written = "<think>" in answer["content"] and thought.strip() in answer["content"]
    if not is_written:
        _add_thought(answer, (answer.get(THOUGHT), thought), f"column {named(row, name)}", notes)
    return name


def _is_trained_on(turn: Mapping[str, Any], number: int, notes: set[str]) -> bool | None:
    """Return whether a turn says that it is trained on, None where it says nothing."""
    unclear = next((key for key in UNCLEAR_LOSS_KEYS if holds_something(turn.get(key))), None)
    if unclear is not None:
        raise RowFault(
            "schema", f"turn {number}: {unclear} is not read; say loss: false where nothing is to be learnt"
        )
    found = {key: turn[key] for key in LOSS_KEYS if turn.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
            raise RowFault("schema", f"turn {number}: {key} is not true or false, nor a number from 0 to 1")
    least = min(found.values(), default=None)
    if least is not None and 0 < least < 1:
        notes.add("weight_unused")
    return None if least is None else least > 0


def _check_content(message: Message, number: int) -> None:
    role, content = message["role"], message["content"]
    if role == SYSTEM or message.get("tool_calls"):
        return
    if role == TOOL and content is not None:
        return
    if empty := "null" if content is None else how_empty(content):
        reason = {ASSISTANT: "empty_assistant", USER: "empty_user"}.get(role, "schema")
        without = " and there are no tool_calls" if role == ASSISTANT and content is None else ""
        raise RowFault(reason, f"turn {number} ({role}): content is {empty}{without}")


def _check_loss(messages: list[Message]) -> None:
    answers = [message for message in messages if message["role"] == ASSISTANT]
    if answers and all(message.get("loss") is False for message in answers):
        raise RowFault("no_label_tokens", "loss is false in every answer: no token is learned")
