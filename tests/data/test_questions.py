"""Rows that are asked: what may end with its question, and what still may not."""

import pytest

from swiftlet.data.formats import to_sample
from swiftlet.data.questions import to_question
from swiftlet.data.rows import BadRow, Origin, Record

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
}
RESULT = {"role": "tool", "content": "1"}


def read(row, columns=None, by=to_question):
    return by(Record(row, Origin("rows.jsonl", 1)), columns or {})


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"query": "q"}, {}, [USER]),
        ({"query": "q", "response": ""}, {}, [USER]),
        ({"query": "q", "response": None}, {}, [USER]),
        ({"query": "q", "response": " \u200b"}, {}, [USER]),
        ({"instruction": "q", "input": "", "output": ""}, {}, [USER]),
        ({"prompt": [USER]}, {}, [USER]),
        ({"query": "q", "history": [["q", "a"]]}, {}, [USER, ASSISTANT, USER]),
        ({"query": "q", "system": "s"}, {}, [{"role": "system", "content": "s"}, USER]),
        ({"q1": "q"}, {"q1": "query"}, [USER]),
        ({"messages": [USER, ASSISTANT, USER]}, {}, [USER, ASSISTANT, USER]),
        ({"messages": '[{"role": "user", "content": "q"}]'}, {}, [USER]),
        ({"conversations": [{"from": "human", "value": "q"}]}, {}, [USER]),
        (
            {"talk": [{"who": "user", "says": "q"}]},
            {"talk": "messages", "who": "role", "says": "content"},
            [USER],
        ),
    ],
)
def test_a_row_without_an_answer_is_its_question(row, columns, expected):
    assert isinstance(read(row, columns, to_sample), BadRow)
    assert read(row, columns).messages == expected


def test_a_chat_may_end_with_the_result_of_a_tool():
    found = read({"messages": [USER, CALL, RESULT]}).messages
    assert [message["role"] for message in found] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"id": "1"},
        {"query": ""},
        {"query": "q", "response": 5},
        {"query": "q", "output": "a", "answer": "b"},
        {"messages": [USER, USER]},
        {"messages": [ASSISTANT, USER]},
        {"messages": [{"role": "system", "content": "s"}]},
        {"messages": "no JSON"},
        {"messages": [USER], "images": ["a.png"]},
    ],
)
def test_what_cannot_be_asked_has_the_reason_of_a_row_to_train_on(row):
    assert read(row) == read(row, by=to_sample)
    assert isinstance(read(row), BadRow)


@pytest.mark.parametrize(
    "row", [{"query": "q", "response": "a"}, {"messages": [USER, ASSISTANT]}, {"text": "t"}]
)
def test_a_row_with_an_answer_is_as_it_is_trained_on(row):
    assert read(row) == read(row, by=to_sample)
