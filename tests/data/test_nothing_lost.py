"""What a row holds is trained on, noted, or the reason why the row is left out; it never vanishes."""

import pytest
from test_formats import SYSTEM, fault_of, sample_of, turns


@pytest.mark.parametrize("name", ["image", "images", "video", "audio", "audios"])
@pytest.mark.parametrize("number", [0, 1])
def test_media_of_a_turn_are_refused(name, number):
    chat = turns("a", "b")
    chat[number][name] = ["a.png"]
    fault = fault_of({"messages": chat})
    assert (fault.reason, fault.detail) == (
        "multimodal",
        f"turn {number}: key {name}: only text is trained on",
    )


def test_media_of_a_question_and_answer_in_one_object_are_refused():
    fault = fault_of({"conversation": [{"human": "a", "assistant": "b", "image": "a.png"}]})
    assert (fault.reason, fault.detail) == ("multimodal", "turn 0: key image: only text is trained on")


@pytest.mark.parametrize("value", [None, "", [], [None]])
def test_empty_media_of_a_turn_are_none(value):
    chat = [message | {"images": value} for message in turns("a", "b")]
    assert sample_of({"messages": chat}).messages == turns("a", "b")


ANSWER = [{"role": "assistant", "content": "b"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("text", [{"messages": ANSWER}, {"text": "b"}])
@pytest.mark.parametrize(
    ("more", "reason", "detail"),
    [
        ({"system": "s"}, "schema", "column system beside a text without a question"),
        ({"system_prompt": "s"}, "schema", "column system_prompt beside a text without a question"),
        ({"tools": [TOOL]}, "schema", "column tools beside a text without a question"),
        ({"history": [["q", "a"]]}, "columns", "column history beside column "),
    ],
)
def test_a_text_without_a_question_has_no_place_for_other_columns(text, more, reason, detail):
    fault = fault_of(text | more)
    assert fault.reason == reason
    assert detail in fault.detail


@pytest.mark.parametrize("text", [{"messages": ANSWER}, {"text": "b"}])
def test_empty_columns_beside_a_text_are_no_fault(text):
    row = text | {"system": "", "tools": "[]", "functions": None, "history": []}
    assert sample_of(row).text == "b"


def test_a_history_beside_a_chat_is_refused():
    fault = fault_of({"messages": turns("a", "b"), "history": '[["q", "a"]]'})
    assert fault.reason == "columns"
    assert fault.detail == "column history beside column messages: put its turns into one chat"
    for empty in (None, "", [], "[]"):
        assert sample_of({"messages": turns("a", "b"), "history": empty}).messages == turns("a", "b")


def test_the_system_text_of_a_question_and_answer_in_one_object():
    pair = {"human": "a", "assistant": "b"}
    assert sample_of({"conversation": [{"system": "s"} | pair, pair]}).messages == [
        SYSTEM,
        *turns("a", "b", "a", "b"),
    ]
    assert sample_of({"conversation": [{"system": ""} | pair]}).messages == turns("a", "b")
    fault = fault_of({"conversation": [pair, {"system": "s"} | pair]})
    assert (fault.reason, fault.detail) == ("role_order", "turn 2: a system turn in the middle")
