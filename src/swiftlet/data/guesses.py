"""What the columns of a row that has none of ours most likely are, by their names and values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

Row = Mapping[str, Any]

SYSTEMS = ("system", "system_prompt")
TAKEN = (*SYSTEMS, "history")

# parts of column names, in the order in which they are tried, and what such a column most likely is
GUESSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("system", ("system", "meta_instruction", "系统")),
    (
        "response",
        ("answer", "resp", "reply", "output", "completion", "assistant", "bot", "target", "solution")
        + ("generation", "generated", "summary"),
    ),
    ("response", ("回答", "答案", "回复", "输出", "解答", "答", "结果", "译文", "摘要")),
    ("query", ("question", "query", "prompt", "instruction", "user", "human", "input", "problem", "ask")),
    ("query", ("问题", "提问", "指令", "输入", "用户", "题", "问", "原文")),
    ("messages", ("messages", "dialog", "chat", "conversation", "turns", "utterances", "对话")),
    ("text", ("text", "content", "body", "document", "正文", "文本", "内容")),
)
# names too short to be looked for in others
SHORT = {
    "q": "query",
    "src": "query",
    "a": "response",
    "ans": "response",
    "tgt": "response",
    "code": "response",
    "sql": "response",
}
LABELS = ("label", "labels", "标签")  # a class, or an answer that an annotator wrote
CHOICES = ("choices", "options", "candidates")  # of which an answer may be one by its number
# what ends the names of columns about a text that is elsewhere: user_id, response_source
_ABOUT = re.compile(
    r"(?:^|[ _-])(?:u?id|ids|uuid|idx|index|hash|source|type|model|name|lang|language|len|length|category|domain|date"
    r"|time|timestamp|url|file|path|tags?|task|split|kind|license|difficulty|level|status|state|topic|role"
    r"|ability|generator|annotator|labell?er)$"
)
_THOUGHT = re.compile(r"reason|think|thought|rationale|(?:^|[ _-])cot(?:$|[ _-])|思考|推理")


def guess(row: Row, ours: str) -> str | None:
    """Return the column of the row that most likely is ours, by its name and what it holds."""
    return next(iter(guesses(row, ours)), None)


def guesses(row: Row, ours: str) -> list[str]:
    """Return all such columns, in their order."""
    if ours != "messages":
        return [name for name in _named(tuple(row), ours) if isinstance(row[name], str)]
    return [
        name
        for name, value in row.items()
        if are_turns(value) and name not in TAKEN and (meaning(name) == ours or has_role(value[0]))
    ]


@lru_cache(maxsize=1024)  # the rows of a file have the same names, many of them in some
def _named(names: tuple[str, ...], ours: str) -> tuple[str, ...]:
    """Return those of a row's names that mean ours; an A beside a B is a choice and no answer."""
    is_choice = not {"b", "B"}.isdisjoint(names)
    return tuple(
        name
        for name in names
        if name not in TAKEN and meaning(name) == ours and not (is_choice and name in ("a", "A"))
    )


def lost_choice(row: Row, answer: str, kept: Sequence[str]) -> str | None:
    """Return the column of the choices of which an answer is but the name, None where it says something itself.

    Args:
        kept: columns that are not lost.
    """
    said = row[answer].strip() if isinstance(row[answer], str) else ""
    lost = [said] if said in row else []
    if len(said) == 1 and said.isupper():
        lost += [name for name, value in row.items() if isinstance(value, (list, dict)) and len(value) > 1]
    elif said.isdecimal() and len(said) < 3:
        lists = [name for name in CHOICES if isinstance(row.get(name), list)]
        lost += [name for name in lists if int(said) <= len(row[name]) and said not in row[name]]
    return next((name for name in lost if name not in (*kept, answer)), None)


def other_texts(row: Row, known: Sequence[str]) -> list[str]:
    """Return the columns beside the known ones that may be a question or an answer: not what is about them."""
    return [
        name
        for name, value in row.items()
        if isinstance(value, str)
        and value.strip()
        and name not in (*known, *TAKEN)
        and meaning(name) != "system"
        and not _is_about(name)
        and not may_be_thought(name)
    ]


def may_be_thought(name: str) -> bool:
    """Return whether a column may hold what was thought before an answer, by its name."""
    return _THOUGHT.search(name.lower()) is not None


def first_text(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of the names under which the row has a text that says something."""
    return next((name for name in names if isinstance(row.get(name), str) and row[name].strip()), None)


def are_turns(value: Any) -> bool:
    """Return whether a value is a list whose items can be the turns of a conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def are_texts(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def has_role(turn: Row) -> bool:
    """Return whether an object says whose turn it is."""
    return "role" in turn or "from" in turn


def longest_first(row: Row, names: Sequence[str]) -> list[str]:
    """Return columns with the longest text first where it is far longer: a worked answer, beside its result."""
    lengths = {name: len(row[name]) if isinstance(row[name], str) else 0 for name in names}
    longest = max(names, key=lambda name: lengths[name] > 4 * lengths[names[0]], default="")
    return sorted(names, key=lambda name: name != longest)


def _is_about(name: str) -> bool:
    return _ABOUT.search(name.lower()) is not None


@lru_cache(maxsize=4096)  # a name is looked up in every row of a file
def meaning(name: str) -> str | None:
    """Return which of our columns the name of one means, None for a name that says nothing."""
    if _is_about(name):
        return None
    # "task" holds "ask" and names a kind of question; "context" holds "text"
    lowered = name.lower().replace("task", "").replace("context", "")
    return SHORT.get(lowered) or next(
        (ours for ours, parts in GUESSES if any(part in lowered for part in parts)), None
    )
