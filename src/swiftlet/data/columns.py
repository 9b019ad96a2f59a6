"""Which columns of a row are the question and the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swiftlet.data.guesses import (
    LABELS,
    TAKEN,
    Row,
    are_texts,
    are_turns,
    guesses,
    longest_first,
    lost_choice,
)
from swiftlet.data.hints import answer_beside, may_have_question, missing, names_a_choice
from swiftlet.data.names import flag_of, named
from swiftlet.data.reasons import RowFault
from swiftlet.data.rewrites import rewritten

CHATS = ("messages", "conversations", "conversation")
TOOLS = ("tools", "functions")
BESIDE = (*TAKEN, *TOOLS)  # what a sample takes beside its question and its answer
QUESTIONS = (("query",), ("prompt",), ("instruction", "input"), ("question",), ("problem",))
ASKED = tuple(name for names in QUESTIONS for name in names)
ANSWERS = ("response", "output", "completion", "answer", "solution", "target", "targets")
PARTS = {"instruction", "input"}
# columns that belong together and are taken although others could be meant too
PAIRS = ((("query",), "response"), (("instruction", "input"), "output"), (("prompt",), "completion"))
PREFERENCES = (
    "chosen", "rejected", "chosen_messages", "rejected_messages", "chosen_response", "rejected_response",
    "preferred_output", "non_preferred_output",
)  # fmt: skip
MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
THOUGHTS = ("reasoning_content", "thinking")  # a column `reasoning` mostly says whether there is some
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")  # of a turn
# columns that are not used, with the code of the note that says so
NOTED = (
    (("label", "kto_tag"), "label_unused"),
    (("chat_template_kwargs", "documents"), "template_inputs_unused"),
)
TURN_KEYS = ("role", "content")
SPEAKERS = ("user", "assistant", "tool")
OURS = {*CHATS, *BESIDE, *ANSWERS, *ASKED, "text", *TURN_KEYS, *THOUGHTS}
ROW_KEYS = OURS | {*MEDIA, *PREFERENCES, "input_ids"}
# anything but white space and the marks without width that pages and editors leave behind
_SEEN = re.compile("[^\\s\u00ad\u200b-\u200d\u2060\ufeff]")


class Columns(NamedTuple):
    """The columns of one row: the question (none: all of the answer is trained on) and the answer."""

    questions: tuple[str, ...]
    answer: str


def first_set(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of the names under which the row has a value."""
    return next((name for name in names if row.get(name) not in (None, [], "")), None)


def holds_something(value: Any) -> bool:
    """Return whether a value is more than null, NaN, empty, or a list of such."""
    if isinstance(value, list):
        return any(holds_something(item) for item in value)
    return value is not None and value != "" and value != {} and value == value


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
    answers = [name for (name,) in _present(row, [(name,) for name in ANSWERS])]
    questions_found = _present(row, QUESTIONS)
    questions_found = [
        names for names in questions_found if any(_is_set(row, name) for name in names)
    ] or questions_found[:1]
    if not answers:
        raise RowFault("schema", missing(row, [name for names in questions_found for name in names], []))
    if len(answers) > 1:
        raise RowFault("columns", _ambiguous(row, "answer", answers, "response"))
    if len(questions_found) > 1:
        raise RowFault(
            "columns", _ambiguous(row, "question", [names[0] for names in questions_found], "query")
        )
    if questions_found:
        return Columns(questions_found[0], answers[0])
    is_plain = answers == ["response"] and not may_have_question(row)
    if not is_plain or first_set(row, TAKEN):
        is_answer = not isinstance(row[answers[0]], (bool, int, float))
        raise RowFault("schema", missing(row, [], answers if is_answer else []))
    return Columns((), "response")


def with_answer_beside(fault: RowFault, row: Row, chat: str) -> RowFault:
    """Return the fault of a conversation, with what to do where its answer stands in a column beside it."""
    beside = answer_beside(row, chat) if fault.reason == "no_answer" else ""
    return RowFault(fault.reason, f"{fault.detail}{beside}")


def check_choices(row: Row, used: Sequence[str], columns: Mapping[str, str]) -> None:
    """Make sure that the answer, the last of the `used` columns, names no choice that would be lost with its column.

    Raises:
        RowFault: it does, and `--columns` does not choose it.
    """
    if "response" in columns.values():
        return
    lost = lost_choice(row, used[-1], (*used, *BESIDE))
    if lost is not None:
        raise RowFault(
            "columns", f"{names_a_choice(row, used[-1], lost)} {flag_of(row, used[-1], 'response')}"
        )


def check_input(row: Row, used: Sequence[str]) -> None:
    """Make sure that an instruction is a whole question, and what it is about stands in no column that is not used.

    Raises:
        RowFault: it does not; a column that repeats the instruction, as a whole prompt does, is none.
    """
    if "instruction" not in used or row.get("input"):
        return
    task = row["instruction"]
    for name in ("question", "problem", *guesses(row, "text")):
        other = row.get(name)
        if not isinstance(other, str) or not other.strip():
            continue
        if not isinstance(task, str) or not task or (other not in task and task not in other):
            raise RowFault(
                "columns",
                f"column {named(row, name)} beside column {named(row, 'instruction')} may be its input, and would be "
                f"lost: join them with {flag_of(row, name, 'input')}, or leave it out with "
                f"{flag_of(row, 'instruction', 'query')}",
            )


def check_alone(row: Row, columns: Mapping[str, str]) -> None:
    """Make sure that a text that is to be learnt as a whole is no question with its answer in another column.

    Raises:
        RowFault: it may be one, and `--columns` does not say that it is none.
    """
    if "text" in columns.values():
        return
    labels = [name for name in LABELS if isinstance(row.get(name), str) or are_texts(row.get(name))]
    for name in (*guesses(row, "response"), *labels):
        if holds_something(row[name]):
            both = f"{flag_of(row, 'text', 'query')} {flag_of(row, name, 'response')}"
            raise RowFault(
                "columns",
                f"column {named(row, name)} beside column text may be its answer: learn it with {both}, or each "
                f"text alone with {flag_of(row, 'text', 'text')}",
            )


def learn_preferred(row: Row, name: str) -> str:
    """Return what to type to learn the preferred answers of a row alone, '' where nothing does it.

    Args:
        name: the column of preferences that the row has.
    """
    chat, asked = first_set(row, CHATS), first_set(row, ASKED)
    flags = []
    if "reject" in name or name.startswith("non_"):  # the answer of the row is the preferred one
        own = chat or first_set(row, ANSWERS)
        flags = [flag_of(row, own, "messages" if own == chat else "response")] if own else []
    elif are_turns(row[name]) and len(row[name]) > 1:
        flags = [flag_of(row, name, "messages")]
    elif chat is not None:
        flags = [flag_of(row, chat, "query"), flag_of(row, name, "response")]
    elif asked is not None and (isinstance(row[name], str) or are_turns(row[asked])):
        flags = [flag_of(row, name, "response")]
    if flags:
        return f"; learn the preferred answers alone with {' '.join(flags)}"
    return f"; {how}" if (how := rewritten(row)) else ""


def _is_mixed(row: Row, questions: tuple[str, ...]) -> bool:
    """Return whether the task may stand in one column and its input in another, of which neither is taken alone."""
    if "instruction" in questions:  # a prompt beside it mostly repeats both
        others: tuple[str, ...] = ("query",)
    else:
        others = tuple(name for name in ASKED if name not in questions)
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


def _ambiguous(row: Row, what: str, names: Sequence[str], ours: str) -> str:
    names = longest_first(row, names) if what == "answer" else names
    found = f"ambiguous {what} columns: {', '.join(named(row, name) for name in names)}"
    if what == "answer":  # none is a part of another, as questions may be
        return f"{found}; choose with {' or '.join(flag_of(row, name, ours) for name in names)}"
    choose = f"choose with {flag_of(row, names[0], ours)}"
    whole = next((name for name in ("query", "question", "problem") if name in names), None)
    if whole and (other := PARTS - row.keys()) and other != PARTS:
        choose += f", or join them with {flag_of(row, whole, *other)}"
    return f"{found}; {choose}"
