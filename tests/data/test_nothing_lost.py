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


@pytest.mark.parametrize(
    ("row", "names", "choose"),
    [
        (
            {"instruction": "i", "query": "q", "output": "o"},
            "query, instruction",
            "--columns query=query, or join them with --columns query=input",
        ),
        (
            {"input": "n", "query": "q", "response": "o"},
            "query, input",
            "--columns query=query, or join them with --columns query=instruction",
        ),
        (
            {"instruction": "i", "input": "n", "query": "q", "response": "o"},
            "query, instruction",
            "--columns query=query",
        ),
        ({"prompt": "q", "input": "n", "completion": "o"}, "prompt, input", "--columns prompt=query"),
        ({"prompt": "q", "input": "n", "output": "o"}, "prompt, input", "--columns prompt=query"),
        (
            {"instruction": "i", "prompt": "q", "completion": "o"},
            "prompt, instruction",
            "--columns prompt=query",
        ),
        (
            {"question": "q", "input": "n", "output": "o"},
            "input, question",
            "--columns input=query, or join them with --columns question=instruction",
        ),
        (  # as LawBench's
            {"instruction": "i", "question": "q", "answer": "o"},
            "instruction, question",
            "--columns instruction=query, or join them with --columns question=input",
        ),
    ],
)
def test_a_query_beside_a_task_or_its_input_is_ambiguous(row, names, choose):
    fault = fault_of(row)
    assert fault.reason == "columns"
    assert fault.detail == f"ambiguous question columns: {names}; choose with {choose}"
    chosen = names.split(",")[0]
    assert sample_of(row, {chosen: "query"}).messages == turns(row[chosen], "o")


def test_an_empty_question_beside_another_is_none():
    for other in ("query", "prompt", "question", "problem"):
        assert sample_of({other: "q", "input": "", "output": "o"}).messages == turns("q", "o")
    row = {"prompt": "both of them", "instruction": "i", "input": "n", "output": "o"}
    assert sample_of(row).messages == turns("i\nn", "o")


def test_a_query_is_joined_as_the_message_says():
    row = {"instruction": "i", "query": "q", "output": "o"}
    assert sample_of(row, {"query": "input"}).messages == turns("i\nq", "o")
    assert sample_of({"query": "q", "input": "n", "output": "o"}, {"query": "instruction"}).messages == turns(
        "q\nn", "o"
    )


@pytest.mark.parametrize(
    ("row", "columns", "messages"),
    [
        ({"question": "q", "prompt": "p", "answer": "a"}, {"prompt": "query"}, turns("p", "a")),
        ({"question": "q", "answer": "a", "solution": "s"}, {"answer": "response"}, turns("q", "a")),
        ({"prompt": "p", "input": "n", "output": "o"}, {"prompt": "query"}, turns("p", "o")),
        ({"question": "q", "answer": "a", "target": "t"}, {"target": "output"}, turns("q", "t")),
    ],
)
def test_a_choice_among_columns_that_mean_the_same_is_taken(row, columns, messages):
    assert sample_of(row, columns).messages == messages


def test_part_of_a_question_replaces_no_other_question():
    fault = fault_of({"question": "q", "context": "c", "answer": "a"}, {"context": "input"})
    assert (fault.reason, fault.detail.split(";")[0]) == (
        "columns",
        "ambiguous question columns: context, question",
    )
    columns = {"context": "input", "question": "instruction"}
    assert sample_of({"question": "q", "context": "c", "answer": "a"}, columns).messages == turns("q\nc", "a")


def test_two_columns_of_one_row_under_one_name_are_a_fault():
    row = {"title": "t", "body": "b", "response": "r"}
    columns = {"title": "query", "body": "query"}
    fault = fault_of(row, columns)
    assert (fault.reason, fault.detail) == (
        "columns",
        "title and body are both query by --columns: give one of them another name, "
        "such as instruction and input",
    )
    for name, text in (("title", "t"), ("body", "b")):
        assert sample_of({name: text, "response": "r"}, columns).messages == turns(text, "r")
        other = {"title", "body"} - {name}
        assert sample_of({name: text, "response": "r"} | dict.fromkeys(other), columns).messages == turns(
            text, "r"
        )
    assert (
        "both response by --columns: give one of them another name"
        in fault_of(row, {"body": "response", "response": "response"}).detail
    )


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        (
            {"Instruction": "a", "Input": "b", "Output": "c"},
            "Instruction=instruction Input=input Output=response",
        ),
        ({"指令": "a", "输入": "b", "输出": "c"}, "指令=instruction 输入=input 输出=response"),
        ({"user_input": "b", "user_prompt": "a", "output": "c"}, "user_prompt=instruction user_input=input"),
        ({"Question": "a", "Question_kind": "b", "Answer": "c"}, "Question=query Answer=response"),
    ],
)
def test_the_flags_of_a_task_and_its_input_lose_neither(row, flags):
    detail = fault_of(row).detail
    assert detail.endswith("name it with " + " ".join(f"--columns {flag}" for flag in flags.split()))
    columns = dict(flag.split("=") for flag in flags.split())
    (question, answer) = sample_of(row, columns).messages
    assert (question["content"], answer["content"]) == ("a\nb" if "input" in flags else "a", "c")
