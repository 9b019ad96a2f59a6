"""The flag to type where a row has no column of ours: what its columns most likely are, by their names and values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

TURNS = (("role", "content"), ("from", "value"), ("role", "text"))  # the keys of a turn
TAKEN = ("system", "system_prompt", "history")
NUM_NAMES, LONGEST_NAME = 12, 40
_PLAIN_WORD = re.compile(r"[\w.=-]+")

# parts of column names, in the order in which they are tried, and what such a column most likely is
GUESSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "response",
        ("answer", "response", "reply", "output", "completion", "assistant", "bot", "target", "solution"),
    ),
    ("response", ("回答", "答案", "回复", "输出", "解答", "答")),
    ("query", ("question", "query", "prompt", "instruction", "user", "human", "input", "problem", "ask")),
    ("query", ("问题", "提问", "指令", "输入", "用户", "题", "问")),
    ("messages", ("messages", "dialog", "chat", "conversation", "turns", "对话")),
    ("text", ("text", "content", "body", "document", "正文", "文本", "内容")),
)
# what ends the names of columns about a text that is elsewhere: user_id, response_source
_ABOUT = re.compile(
    r"(?:^|[ _-])(?:u?id|ids|uuid|idx|index|hash|source|type|model|name|lang|language|len|length)$"
)
# parts of the names of what a task is done on, beside the column of the task
INPUTS = ("input", "输入")


def missing(row: Row, *, has_question: bool, has_answer: bool) -> str:
    """Return which column is missing, those that were found, and the flag that would name it."""
    if not row:
        return "the row is an empty object"
    names = ", ".join(shown(name) for name in sorted(row)[:NUM_NAMES])
    more = f" and {len(row) - NUM_NAMES} more" if len(row) > NUM_NAMES else ""
    if has_answer:
        what = "no question column"
    elif has_question:
        what = "no answer column"
    else:
        what = "no chat and no answer column"
    found = f"{what}; columns: {names}{more}"
    is_turn = any(row.keys() >= {*keys} for keys in TURNS)
    if is_turn and not has_question and not has_answer:
        alone = f", or train on each text alone with {flag('text', 'text')}" if "text" in row else ""
        return (
            f'{found}; that is one turn: put the turns of a chat into one row, {{"messages": [...]}}{alone}'
        )
    return f"{found}; name it with {_flags(row, has_question, has_answer)}"


def _flags(row: Row, has_question: bool, has_answer: bool) -> str:
    chat, text = guess(row, "messages"), guess(row, "text")
    if not has_question and not has_answer and chat is not None:
        return flag(chat, "messages")
    question = None if has_question else guess(row, "query")
    answers = [] if has_answer else longest_first(row, _guesses(row, "response"))
    answer = answers[0] if answers else None
    if not has_question and not has_answer and question is None and answer is None:
        texts = [name for name, value in row.items() if isinstance(value, str) and not _is_about(name)]
        if len(texts) == 2:  # which of them is the question, only their order says
            question, answer = texts
        elif text is not None:
            return flag(text, "text")
    flags = []
    if not has_question:
        flags += _question_flags(row, question or "COLUMN")
    if not has_answer:
        flags.append(flag(answer or "COLUMN", "response"))
    choices = [flag(name, "response") for name in answers[1:]]
    if text is not None and text in (question, answer):
        choices.append(f"train on one column alone with {flag(text, 'text')}")
    return ", or ".join([" ".join(flags), *choices])


def _question_flags(row: Row, question: str) -> list[str]:
    """Return the flags for a question, or for a task and its input, of which neither should be lost."""
    found = _guesses(row, "query")
    inputs = [name for name in found if any(part in name.lower() for part in INPUTS)]
    tasks = [name for name in found if name not in inputs]
    if inputs and tasks:
        return [flag(tasks[0], "instruction"), flag(inputs[0], "input")]
    return [flag(question, "query")]


def guess(row: Row, ours: str) -> str | None:
    """Return the column of the row that most likely is ours, by its name and what it holds."""
    return next(iter(_guesses(row, ours)), None)


def _guesses(row: Row, ours: str) -> list[str]:
    found = []
    for name, value in row.items():
        is_kind = are_turns(value) if ours == "messages" else isinstance(value, str)
        is_meant = _meaning(name) == ours or (ours == "messages" and is_kind and _has_role(value[0]))
        if is_kind and name not in TAKEN and is_meant:
            found.append(name)
    return found


def are_turns(value: Any) -> bool:
    """Return whether a value is a list whose items can be the turns of a conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _has_role(turn: Row) -> bool:
    return "role" in turn or "from" in turn


def longest_first(row: Row, names: Sequence[str]) -> list[str]:
    """Return columns with the longest text first where it is far longer: a worked answer, beside its result."""
    lengths = {name: len(row[name]) if isinstance(row[name], str) else 0 for name in names}
    longest = max(names, key=lambda name: lengths[name] > 4 * lengths[names[0]], default="")
    return sorted(names, key=lambda name: name != longest)


def _is_about(name: str) -> bool:
    return _ABOUT.search(name.lower()) is not None


def _meaning(name: str) -> str | None:
    if _is_about(name):
        return None
    lowered = name.lower().replace("task", "")  # which holds "ask", and names a kind of question
    return next((ours for ours, parts in GUESSES if any(part in lowered for part in parts)), None)


def flag(theirs: str, ours: str) -> str:
    """Return the flag that gives a column, or a key of a turn, our name."""
    word = f"{shown(theirs)}={ours}"
    return f"--columns {word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word)}"


def shown(name: str) -> str:
    """Return the name of a column for a message: short, and text that UTF-8 can hold."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
