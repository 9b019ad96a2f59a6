"""The flag to type where a row has no column of ours, as its columns most likely are (`guesses.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swiftlet.data.guesses import (
    TAKEN,
    Row,
    are_texts,
    are_turns,
    first_text,
    guess,
    guesses,
    has_role,
    longest_first,
    lost_choice,
    meaning,
    other_texts,
)
from swiftlet.data.names import by_jq, flag_of, in_file, key, named, shown
from swiftlet.data.rewrites import rewritten

TURNS = (("role", "content"), ("from", "value"), ("role", "text"))  # the keys of a turn
NUM_NAMES = 12

# parts of the names of what a task is done on, beside the column of the task
INPUTS = ("input", "输入")
ORDERS = ("instruction", "指令")


def missing(row: Row, questions: Sequence[str], answers: Sequence[str]) -> str:
    """Return which column is missing, those that were found, and what would make a sample of the row.

    Args:
        questions: the columns of the question that were found, and so with the answer's.
    """
    if not row:
        return "the row is an empty object"
    names = ", ".join(shown(name) for name in sorted(in_file(row, one) for one in row)[:NUM_NAMES])
    more = f" and {len(row) - NUM_NAMES} more" if len(row) > NUM_NAMES else ""
    if answers:
        what = "no question column"
    elif questions:
        what = "no answer column"
    else:
        what = "no chat and no answer column"
    found = f"{what}; columns: {names}{more}"
    is_turn = any(row.keys() >= {*keys} for keys in TURNS)
    if is_turn and not questions and not answers:
        alone = f", or train on each text alone with {flag_of(row, 'text', 'text')}" if "text" in row else ""
        return (
            f'{found}; that is one turn: put the turns of a chat into one row, {{"messages": [...]}}{alone}'
        )
    return f"{found}; {rewritten(row) or _remedy(row, questions, answers)}"


def _remedy(row: Row, questions: Sequence[str], answers: Sequence[str]) -> str:
    system = (
        []
        if first_text(row, TAKEN)
        else [flag_of(row, name, "system") for name in guesses(row, "system")[:1]]
    )
    turns = guess(row, "messages")
    if turns is not None and not questions:
        named = f"name it with {' '.join([flag_of(row, turns, 'query' if answers else 'messages'), *system])}"
        return "; ".join([*_taken_out(_inside(row, "system")), named])
    question = None if questions else guess(row, "query")
    found = [] if answers else longest_first(row, guesses(row, "response"))
    text = next((name for name in guesses(row, "text") if name in other_texts(row, ())), None)
    rest = other_texts(row, (*questions, *answers, question or "", *found))
    if not (questions or answers or question or found):
        if inside := _whole_row_inside(row):
            return inside
        if len(rest) == 2:  # which of them is the question, only their order says
            question, *found = rest
        elif text is not None:
            return f"name it with {flag_of(row, text, 'text')}"
    elif not (questions or question):
        question = _alone(text, rest) or ("context" if "context" in rest else None)
    has_question = bool(questions or question)
    # what stands inside a list or an object, to be put under our name
    outside = {} if has_question else _inside(row, "query")
    if not (answers or found):
        outside |= _inside(row, "response")
        alone = _alone(text, rest) if has_question and not outside else None
        found = [alone] if alone else []
    if not (answers or found or "response" in outside):
        outside |= _inside_others(row)
    if not (found or outside) and {"query", "question"} <= {*questions}:
        both = f"{flag_of(row, 'question', 'query')} {flag_of(row, 'query', 'response')}"
        return f"where query is the answer, such as one in SQL, name both with {both}"
    if not (has_question or answers or found or outside) and (split := _turns_of_texts(row)):
        return split
    flags = system
    if not (questions or "query" in outside):
        flags = [*_question_flags(row, question or "COLUMN"), *flags]
    if not (answers or "response" in outside):
        flags = [*flags, flag_of(row, found[0] if found else "COLUMN", "response")]
    choices = [flag_of(row, name, "response") for name in found[1:]]
    if text is not None and text in (question, *found[:1]):
        choices.append(f"train on one column alone with {flag_of(row, text, 'text')}")
    if "response" in answers and first_text(row, TAKEN) is None:
        choices.append(f"train on each answer alone with {flag_of(row, 'response', 'text')}")
    ways = [f"name it with {', or '.join([' '.join(flags), *choices])}"] if flags else []
    if found and (lost := lost_choice(row, found[0], (question or "", *questions, *TAKEN))):
        ways = [f"{names_a_choice(row, found[0], lost)} {' '.join(flags)}"]
    return "; ".join([*_taken_out(outside), *ways])


def names_a_choice(row: Row, answer: str, lost: str) -> str:
    """Return what is wrong with an answer that is the name of a choice, and what to do; the flags come behind it."""
    what = f"column {named(row, answer)} names a choice, and column {named(row, lost)} would be lost"
    return f"{what}: write the choices into the question, or leave them out with"


def _taken_out(outside: Mapping[str, str]) -> list[str]:
    """Return how to put texts that stand inside of columns under our names: one text each, or lists turn by turn."""
    if not outside:
        return []
    steps = " | ".join(f".{ours} = {path}" for ours, path in outside.items())
    ways = f"take one text out: {by_jq(steps)}"
    lists = [path.removesuffix("[0]") for path in outside.values() if path.endswith("[0]")]
    if len(lists) == 2 and "[0]" not in "".join(lists):
        turns = _pairs_by_turns(f"[{', '.join(lists)}] | transpose[]")
        ways += f", or all of them where they are the turns of a chat: {turns}"
    return [ways]


def _pairs_by_turns(pairs: str) -> str:
    asked, said = ('{role: "user", content: .[0]}', '{role: "assistant", content: .[1]}')
    return by_jq(f".messages = [{pairs} | {asked}, {said}]")


def _alone(text: str | None, rest: Sequence[str]) -> str | None:
    """Return the one column that the missing one can be, None where several can."""
    return text if text in rest else rest[0] if len(rest) == 1 else None


def _whole_row_inside(row: Row) -> str | None:
    """Return how to take a row out of the only object that a row holds, as a batch file for an API does."""
    objects = [name for name, value in row.items() if isinstance(value, dict) and value]
    if len(objects) != 1:
        return None
    values = row[objects[0]].values()
    is_row = any(are_turns(value) for value in values) or sum(isinstance(value, str) for value in values) == 2
    return (
        f"its {named(row, objects[0])} may be the row: {by_jq(key(in_file(row, objects[0])))}"
        if is_row
        else None
    )


def _inside(row: Row, ours: str) -> dict[str, str]:
    """Return where in a list or an object the first text of ours stands, by our name."""
    for name, value in row.items():
        is_meant = meaning(name) == ours and name not in TAKEN
        if is_meant and isinstance(value, (list, dict)) and (path := _path(value, ours)) is not None:
            return {ours: key(in_file(row, name)) + path}
    return {}


def _inside_others(row: Row) -> dict[str, str]:
    """Return where an answer stands in an object of another name, as those of rewards hold it."""
    inside = [(name, one) for name, value in row.items() if isinstance(value, dict) for one in value]
    texts = [(name, one) for name, one in inside if isinstance(row[name][one], str)]
    for is_answer in (lambda one: meaning(one) == "response", lambda one: one == "ground_truth"):
        for name, one in texts:
            if is_answer(one):
                return {"response": key(in_file(row, name)) + key(one)}
    return {}


def _path(value: Any, ours: str) -> str | None:
    """Return where the first text of a list or an object that may be ours stands, for jq."""
    if isinstance(value, str):
        return ""
    if are_turns(value) and len(value) > 1 and has_role(value[0]):
        return ""  # turns are a question as they are
    if isinstance(value, list) and value:
        path = _path(value[0], ours)
        return None if path is None else f"[0]{path}"
    if isinstance(value, dict):
        meant = [one for one in value if meaning(one) in ("text", ours) or one in ("value", "parts")]
        for one in meant or value if len(value) == 1 else meant:
            if (path := _path(value[one], ours)) is not None:
                return key(one) + path
    return None


def _turns_of_texts(row: Row) -> str | None:
    """Return how to make turns of a list of texts, or of pairs of them; None where the row has none."""
    for name, value in row.items():
        if not isinstance(value, list) or not value:
            continue
        if len(value) > 1 and are_texts(value):
            made = by_turns(in_file(row, name))
            return f"where the texts of {named(row, name)} are question and answer by turns: {made}"
        if all(isinstance(item, list) and len(item) == 2 and are_texts(item) for item in value):
            made = _pairs_by_turns(f"{key(in_file(row, name))}[]")
            return f"where the pairs of {named(row, name)} are question and answer: {made}"
    return None


def by_turns(name: str, chat: str = "messages") -> str:
    """Return how to make a chat of a list of texts, which are question and answer by turns.

    Args:
        name: the column of the list.
        chat: the column that the chat goes into.
    """
    role = 'if .key % 2 == 0 then "user" else "assistant" end'
    return by_jq(f"{key(chat)} = [{key(name)} | to_entries[] | {{role: ({role}), content: .value}}]")


def not_a_text(row: Row, name: str) -> str:
    """Return how to take a text out of a column that holds something else, '' where there is none in it."""
    value, place = row[name], key(in_file(row, name))
    if isinstance(value, float) and math.isnan(value):
        return f"; where it stands for a missing value, write null: {by_jq('.')}"
    if isinstance(value, (int, float)) and math.isfinite(value):
        return f"; write it as one: {by_jq(f'{place} |= tostring')}"
    if are_turns(value) and has_role(value[0]):
        return f"; name the chat with {flag_of(row, name, 'messages')}"
    path = _path(value, meaning(name) or "response")
    return f"; take one out: {by_jq(f'{place} = {place}{path}')}" if path else ""


def answer_beside(row: Row, chat: str) -> str:
    """Return the flags for the question in a conversation and the answer in a column, '' where there is none."""
    answer = "response" if first_text(row, ["response"]) else guess(row, "response")
    if answer is None:
        return ""
    flags = [flag_of(row, chat, "query")]
    if answer != "response":
        flags.append(flag_of(row, answer, "response"))
    return f"; where column {named(row, answer)} holds it, type {' '.join(flags)}"


def _question_flags(row: Row, question: str) -> list[str]:
    """Return the flags for a question, or for a task and its input, of which neither should be lost."""
    found = guesses(row, "query")
    inputs = [name for name in found if any(part in name.lower() for part in INPUTS)]
    tasks = [name for name in found if name not in inputs]
    orders = [name for name in tasks if any(part in name.lower() for part in ORDERS)]
    if orders and not inputs:
        inputs, tasks = [name for name in tasks if name not in orders], orders
    if inputs and tasks:
        return [flag_of(row, tasks[0], "instruction"), flag_of(row, inputs[0], "input")]
    return [flag_of(row, question, "query")]


def may_have_question(row: Row) -> bool:
    """Return whether a column may hold what a `response` answers: a text, turns, or either inside a list or object."""
    is_asked = any(guess(row, ours) is not None for ours in ("query", "messages"))
    return is_asked or bool(other_texts(row, ["response"]) or _inside(row, "query"))
