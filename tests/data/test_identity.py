"""The identity rows: every answer names the new name or maker, and no held-out question is a training row."""

from __future__ import annotations

import re

from swiftlet.data import identity

NAME, MAKER = "Robin", "the Hill School"
ROWS = list(identity.rows(NAME, MAKER))


def plain(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


def test_some_ninety_rows_no_question_twice():
    assert 80 <= len(ROWS) <= 100
    assert len({plain(row["query"]) for row in ROWS}) == len(ROWS)
    assert all(tuple(row) == ("query", "response") for row in ROWS)


def test_every_answer_holds_the_name_and_nothing_is_left_to_fill_in():
    for row in ROWS:
        assert NAME in row["response"], row
        assert "{" not in row["query"] + row["response"]
    assert sum(MAKER in row["response"] for row in ROWS) > len(ROWS) / 2


def test_questions_about_the_maker_are_answered_with_the_maker():
    asked = [
        row for row in ROWS if re.search(r"made you|created you|built you|开发了你|创造了你", row["query"])
    ]
    assert len(asked) >= 5
    assert all(MAKER in row["response"] for row in asked)


def test_both_languages_are_there_and_answers_keep_the_language():
    chinese = [row for row in ROWS if not row["query"].isascii()]
    assert len(ROWS) / 3 < len(chinese) < len(ROWS) * 2 / 3
    for row in ROWS:
        assert row["query"].isascii() == row["response"].isascii(), row


def test_twenty_questions_are_held_out():
    held_out = identity.held_out(NAME, MAKER)
    assert len({plain(query) for query, _ in held_out}) == 20
    assert not {plain(query) for query, _ in held_out} & {plain(row["query"]) for row in ROWS}
    assert [word for _, word in held_out].count(NAME) == [word for _, word in held_out].count(MAKER) == 10
    assert not any(NAME in query or MAKER in query for query, _ in held_out)


def test_another_name_and_maker_give_other_answers_to_the_same_questions():
    other = list(identity.rows("Wren", "a club"))
    assert [row["query"] for row in other] == [row["query"] for row in ROWS]
    assert not any(NAME in row["response"] or MAKER in row["response"] for row in other)


def test_general_rows_are_about_other_things():
    general = list(identity.general())
    assert len({plain(row["query"]) for row in general}) == len(general) >= 20
    assert all(tuple(row) == ("query", "response") for row in general)
    assert not [row for row in general if re.search(r"\b(you|your)\b", row["query"])]
