"""Which columns of a row are the question and the answer; and the flag to type when none are found."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swiftlet.data.reasons import RowFault

Row = Mapping[str, Any]

CHATS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")
BESIDE = (*SYSTEMS, *TOOLS, "history")  # what a sample takes beside its question and its answer
QUESTIONS = (("query",), ("prompt",), ("instruction", "input"), ("question",), ("problem",))
ANSWERS = ("response", "output", "completion", "answer", "solution", "target", "targets")
PARTS = {"instruction", "input"}
# columns that belong together and are taken although others could be meant too
PAIRS = ((("query",), "response"), (("instruction", "input"), "output"), (("prompt",), "completion"))
PREFERENCES = (
    "chosen", "rejected", "chosen_messages", "rejected_messages", "chosen_response", "rejected_response",
    "preferred_output", "non_preferred_output",
)  # fmt: skip
MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
THOUGHTS = ("reasoning_content", "thinking")  # `reasoning` mostly says whether there is some
# columns that are not used, or only beside an answer, with the code of the note that says so
NOTED = (
    (("label", "kto_tag"), "label_unused"),
    (THOUGHTS, "reasoning_unused"),
    (("chat_template_kwargs", "documents"), "template_inputs_unused"),
)
TURN_KEYS = ("role", "content")
SPEAKERS = ("user", "assistant", "tool")
OURS = {
    *CHATS,
    *SYSTEMS,
    *TOOLS,
    *ANSWERS,
    *(name for names in QUESTIONS for name in names),
    "history",
    "text",
    *TURN_KEYS,
}
ROW_KEYS = OURS | {*MEDIA, *PREFERENCES, "input_ids"}
NUM_NAMES, LONGEST_NAME = 12, 40
_PLAIN_WORD = re.compile(r"[\w.=-]+")
# anything but white space and the marks without width that pages and editors leave behind
_SEEN = re.compile("[^\\s\u00ad\u200b-\u200d\u2060\ufeff]")

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


class Columns(NamedTuple):
    """The columns of one row: the question (none: all of the answer is trained on) and the answer."""

    questions: tuple[str, ...]
    answer: str


def first_set(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of the names under which the row has a value."""
    return next((name for name in names if row.get(name) not in (None, [], "")), None)


def holds_something(value: Any) -> bool:
    """Return whether a value is more than null, empty, or a list of such."""
    if isinstance(value, list):
        return any(holds_something(item) for item in value)
    return value is not None and value != "" and value != {}


def how_empty(text: str) -> str:
    """Return in which way a text says nothing, '' where it says something."""
    if _SEEN.search(text):
        return ""
    return "nothing but invisible characters" if text.strip() else "empty"


def check_media(values: Row, what: str) -> None:
    """Make sure that a row or a turn holds no images, videos or audio.

    Raises:
        RowFault: it does; `what` is what its keys are called.
    """
    for name in sorted(MEDIA & values.keys()):
        if holds_something(values[name]):
            raise RowFault("multimodal", f"{what} {name}: only text is trained on")


def find_columns(row: Row) -> Columns:
    """Return the columns of a question and its answer.

    Raises:
        RowFault: none, or more than one could be meant.
    """
    for questions, answer in PAIRS:
        present = tuple(name for name in questions if name in row)
        is_there = present and answer in row and any(row[name] is not None for name in (*present, answer))
        if is_there and not _is_mixed(row, present):
            return Columns(present, answer)
    answers = _present(row, [(name,) for name in ANSWERS])
    questions_found = _present(row, QUESTIONS)
    questions_found = [
        names for names in questions_found if any(_is_set(row, name) for name in names)
    ] or questions_found[:1]
    if not answers:
        raise RowFault("schema", missing(row, has_question=bool(questions_found), has_answer=False))
    if len(answers) > 1:
        raise RowFault("columns", _ambiguous(row, "answer", [names[0] for names in answers], "response"))
    if len(questions_found) > 1:
        raise RowFault(
            "columns", _ambiguous(row, "question", [names[0] for names in questions_found], "query")
        )
    if questions_found:
        return Columns(questions_found[0], answers[0][0])
    is_plain = answers[0] == ("response",) and "text" not in row and _guess(row, "query") is None
    if not is_plain or first_set(row, SYSTEMS) or first_set(row, ("history",)):
        raise RowFault("schema", missing(row, has_question=False, has_answer=True))
    return Columns((), "response")


def check_choices(row: Row, used: Sequence[str]) -> None:
    """Make sure that the answer, the last of the `used` columns, names no choice that would be lost with its column.

    Raises:
        RowFault: it does.
    """
    name, answer = used[-1], row[used[-1]].strip() if isinstance(row[used[-1]], str) else ""
    lost = [answer] if answer in row else []
    if len(answer) == 1 and answer.isupper():
        lost += [other for other, value in row.items() if isinstance(value, (list, dict)) and len(value) > 1]
    lost = [other for other in lost if other not in (*used, *BESIDE)]
    if lost:
        what = f"column {name} names a choice, and column {shown(lost[0])} would be lost"
        remedy = f"write the choices into the question, or leave them out with {flag(name, 'response')}"
        raise RowFault("columns", f"{what}: {remedy}")


def _is_mixed(row: Row, questions: tuple[str, ...]) -> bool:
    """Return whether the task may stand in one column and its input in another, of which neither is taken alone."""
    if "instruction" in questions:  # a prompt beside it mostly repeats both
        others: tuple[str, ...] = ("query",)
    else:
        others = tuple(name for names in QUESTIONS for name in names if name not in questions)
        others = others if "input" in questions else ("instruction", "input")
    return any(_is_set(row, name) for name in others)


def _is_set(row: Row, name: str) -> bool:
    return row.get(name) is not None and row[name] != ""


def _present(row: Row, groups: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the groups that the row has; those with a value, or, when none has one, those that exist."""
    found = [tuple(name for name in group if name in row) for group in groups]
    found = [names for names in found if names]
    filled = [names for names in found if any(row[name] is not None for name in names)]
    return filled or found[:1]


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
    is_turn = any(row.keys() >= {*keys} for keys in (TURN_KEYS, ("from", "value"), ("role", "text")))
    if is_turn and not has_question and not has_answer:
        alone = f", or train on each text alone with {flag('text', 'text')}" if "text" in row else ""
        return (
            f'{found}; that is one turn: put the turns of a chat into one row, {{"messages": [...]}}{alone}'
        )
    return f"{found}; name it with {_flags(row, has_question, has_answer)}"


def _flags(row: Row, has_question: bool, has_answer: bool) -> str:
    chat, text = _guess(row, "messages"), _guess(row, "text")
    if not has_question and not has_answer and chat is not None:
        return flag(chat, "messages")
    question = None if has_question else _guess(row, "query")
    answers = [] if has_answer else _longest_first(row, _guesses(row, "response"))
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


def _guess(row: Row, ours: str) -> str | None:
    """Return the column of the row that most likely is ours, by its name and what it holds."""
    return next(iter(_guesses(row, ours)), None)


def _guesses(row: Row, ours: str) -> list[str]:
    taken, found = {*SYSTEMS, "history"}, []
    for name, value in row.items():
        is_kind = are_turns(value) if ours == "messages" else isinstance(value, str)
        is_meant = _meaning(name) == ours or (ours == "messages" and is_kind and _has_role(value[0]))
        if is_kind and name not in taken and is_meant:
            found.append(name)
    return found


def are_turns(value: Any) -> bool:
    """Return whether a value is a list whose items can be the turns of a conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _has_role(turn: Row) -> bool:
    return "role" in turn or "from" in turn


def _longest_first(row: Row, names: Sequence[str]) -> list[str]:
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


def _ambiguous(row: Row, what: str, names: Sequence[str], ours: str) -> str:
    if what == "answer":  # none is a part of another, as questions may be
        names = _longest_first(row, names)
        choices = " or ".join(flag(name, ours) for name in names)
        return f"ambiguous answer columns: {', '.join(names)}; choose with {choices}"
    choose = f"choose with {flag(names[0], ours)}"
    if "query" in names and (other := PARTS - row.keys()) and other != PARTS:
        choose += f", or join them with {flag('query', *other)}"
    return f"ambiguous {what} columns: {', '.join(names)}; {choose}"


def flag(theirs: str, ours: str) -> str:
    """Return the flag that gives a column, or a key of a turn, our name."""
    word = f"{shown(theirs)}={ours}"
    return f"--columns {word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word)}"


def shown(name: str) -> str:
    """Return the name of a column for a message: short, and text that UTF-8 can hold."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
