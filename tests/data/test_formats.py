"""Rows of every known shape to conversations, and the reason where a row is none."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swiftlet.data.formats import to_sample
from swiftlet.data.mapping import check_columns, unused_columns, used_columns
from swiftlet.data.reasons import NOTES, REASONS
from swiftlet.data.rows import BadRow, Origin, Record, Sample
from swiftlet.errors import UsageError

ORIGIN = Origin("rows.jsonl", 3)


def sample_of(row, columns=None):
    result = to_sample(Record(row, ORIGIN), columns or {})
    assert isinstance(result, Sample), result
    assert result.origin == ORIGIN
    assert set(result.notes) <= NOTES.keys()
    return result


def fault_of(row, columns=None):
    result = to_sample(Record(row, ORIGIN), columns or {})
    assert isinstance(result, BadRow), result
    assert result.origin == ORIGIN
    assert result.reason in REASONS
    assert len(result.sha1) == 40
    return result


def turns(*texts):
    """Return user and assistant turns by turns."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"query": "q", "response": "r"}, turns("q", "r")),
        ({"query": "q", "response": "r", "history": None, "system": ""}, turns("q", "r")),
        (
            {"query": "q", "response": "r", "history": [["a", "b"], ["c", "d"]]},
            turns("a", "b", "c", "d", "q", "r"),
        ),
        ({"query": "q", "response": "r", "history": '[["a", "b"]]'}, turns("a", "b", "q", "r")),
        ({"query": "q", "response": "r", "history": "", "system": "s"}, [SYSTEM, *turns("q", "r")]),
        ({"question": "q", "response": "r", "system_prompt": "s"}, [SYSTEM, *turns("q", "r")]),
        ({"instruction": "i", "input": "n", "output": "o"}, turns("i\nn", "o")),
        ({"instruction": "i", "input": "", "output": "o"}, turns("i", "o")),
        ({"instruction": None, "input": "n", "output": "o"}, turns("n", "o")),
        ({"instruction": "i", "input": "n", "output": "o", "text": "all of it"}, turns("i\nn", "o")),
        ({"instruction": "i", "response": "r"}, turns("i", "r")),
        ({"input": "n", "output": "o", "source": "x"}, turns("n", "o")),
        ({"prompt": "p", "completion": "c"}, turns("p", "c")),
        ({"question": "q", "answer": "a"}, turns("q", "a")),
        ({"problem": "p", "solution": "s"}, turns("p", "s")),
        ({"query": "q", "response": "r", "answer": "4", "solution": "x"}, turns("q", "r")),
        ({"instruction": None, "output": None, "query": "q", "answer": "a"}, turns("q", "a")),
        ({"messages": None, "query": "q", "response": "r"}, turns("q", "r")),
        (
            {"query": "q", "response": "r", "id": 1, "meta": {"k": [None]}, "score": float("nan")},
            turns("q", "r"),
        ),
        ({"query": " q\n", "response": "\tr "}, turns(" q\n", "\tr ")),
        ({"query": "q", "response": "r", "images": [], "video": None, "audios": [None, ""]}, turns("q", "r")),
    ],
)
def test_pairs_of_columns(row, messages):
    assert sample_of(row).messages == messages


@pytest.mark.parametrize("name", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize(
    "chat",
    [
        turns("a", "b", "c", "d"),
        [{"from": turn, "value": text} for turn, text in zip(["human", "gpt"] * 2, "abcd", strict=True)],
        [{"from": "user", "value": "a"}, {"role": "bot", "content": "b"}, *turns("c", "d")],
        [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}],
        [{"input": "a", "output": "b"}, {"user": "c", "assistant": "d"}],
        [{"query": "a", "response": "b"}, *turns("c", "d")],
        [{"prompt": "a", "response": "b"}, {"question": "c", "answer": "d"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}, *turns("x", "b", "c", "d")[1:]],
        [{"role": "user", "content": [{"type": "text", "value": "a"}, ""]}, *turns("x", "b", "c", "d")[1:]],
        json.dumps(turns("a", "b", "c", "d")),
    ],
)
def test_notations_of_a_conversation(name, chat):
    assert sample_of({name: chat, "tools": None}).messages == turns("a", "b", "c", "d")
    assert sample_of({name: chat, "system": "s"}).messages == [SYSTEM, *turns("a", "b", "c", "d")]


NO_ROLE = (
    "turn 0 has no role (its keys: ); name it with --columns KEY=role, "
    'or write each turn as {"role": ..., "content": ...}'
)
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL["function"]])])
@pytest.mark.parametrize("content", ["s", "", None])
def test_tools_of_a_system_turn_are_those_of_the_row(tools, content):
    system = {"role": "system", "content": content, "tools": tools}
    messages = [SYSTEM | {"content": content or ""}, *turns("a", "b")]
    for row in (
        {"messages": [system, *turns("a", "b")]},
        {"prompt": [system, *turns("a")], "completion": "b"},
    ):
        for more in ({}, {"tools": "[]"}, {"tools": [TOOL]}):
            sample = sample_of(row | more)
            assert (sample.messages, sample.tools) == (messages, [TOOL])


def test_other_tools_beside_those_of_a_system_turn_are_a_fault():
    fault = fault_of(
        {"messages": [SYSTEM | {"tools": [TOOL]}, *turns("a", "b")], "functions": [{"name": "g"}]}
    )
    assert (fault.reason, fault.detail) == (
        "columns",
        "column functions beside other tools in the system turn",
    )
    assert sample_of({"messages": [SYSTEM | {"tools": []}, *turns("a", "b")]}).tools is None


def test_a_call_that_is_a_turn_of_its_own_says_whether_it_is_trained_on():
    call = {"role": "function_call", "content": '{"name": "f"}', "loss": False}
    chat = [*turns("a"), call, {"role": "observation", "content": "r"}, {"role": "assistant", "content": "b"}]
    assert [turn.get("loss") for turn in sample_of({"messages": chat}).messages] == [None, False, None, None]
    chat[1:2] = [{"role": "assistant", "content": "c", "loss": False}, call]
    assert [turn.get("loss") for turn in sample_of({"messages": chat}).messages] == [None, False, None, None]


def test_one_thing_said_under_two_keys_is_said_once():
    chat = [turn | {"from": turn["role"], "value": turn["content"]} for turn in turns("a", "b")]
    assert sample_of({"messages": chat}).messages == turns("a", "b")
    chat = [turn | {"from": name} for turn, name in zip(turns("a", "b"), ("human", "Tom"), strict=True)]
    assert sample_of({"messages": chat}).messages == turns("a", "b")


@pytest.mark.parametrize("key", ["loss", "weight", "output_with_loss", "trainable", "training", "loss_mask"])
def test_what_stands_beside_a_question_and_answer_is_the_answers(key):
    chat = [{"input": "a", "output": "b", key: False}, {"input": "c", "output": "d"}]
    assert [turn.get("loss") for turn in sample_of({"conversation": chat}).messages] == [
        None, False, None, None,
    ]  # fmt: skip
    call = {"name": "f", "arguments": {"x": 1}}
    chat = [{"human": "a", "assistant": "", "tool_calls": [call], "thinking": "t"}]
    sample = sample_of({"conversation": chat})
    assert sample.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
    assert sample.messages[1]["thought"] == "t"


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": turns("a"), "completion": [{"role": "assistant", "content": "b"}]}, turns("a", "b")),
        ({"prompt": turns("a", "b", "c"), "completion": "d"}, turns("a", "b", "c", "d")),
        ({"instruction": "", "input": turns("a"), "output": "b", "system": "s"}, [SYSTEM, *turns("a", "b")]),
        ({"prompt": [SYSTEM, *turns("a")], "completion": "b", "system": ""}, [SYSTEM, *turns("a", "b")]),
    ],
)
def test_a_question_that_is_a_list_of_turns(row, messages):
    assert sample_of(row).messages == messages


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": turns("a"), "completion": ""}, "empty_assistant", "column completion is empty"),
        ({"prompt": turns("a"), "completion": []}, "schema", "column completion is a list, not a text"),
        ({"prompt": turns("a"), "completion": turns("b")}, "role_order", "turns 0 and 1 are both user"),
        ({"prompt": turns("a", "b"), "completion": "c"}, "role_order", "turns 1 and 2 are both assistant"),
        ({"prompt": [{}], "completion": "b"}, "schema", NO_ROLE),
        ({"prompt": [1], "completion": "b"}, "schema", "column prompt is a list, not a text"),
        (
            {"prompt": turns("a"), "completion": "b", "history": [["q", "r"]]},
            "columns",
            "column history beside column prompt: put its turns into one chat",
        ),
        (
            {"instruction": "i", "input": turns("a"), "output": "b"},
            "columns",
            "columns instruction and input are one question, and one of them is a list",
        ),
    ],
)
def test_a_question_of_turns_that_is_none(row, reason, detail):
    fault = fault_of(row)
    assert (fault.reason, fault.detail) == (reason, detail)


def test_a_system_turn_of_the_conversation_stays():
    assert sample_of({"messages": [SYSTEM, *turns("a", "b")]}).messages == [SYSTEM, *turns("a", "b")]
    assert sample_of({"messages": [SYSTEM, *turns("a", "b")], "system": "s"}).messages[0] == SYSTEM
    assert sample_of({"messages": [{"role": "system", "content": None}, *turns("a", "b")]}).messages == turns(
        "a", "b"
    )
    fault = fault_of({"messages": [SYSTEM, *turns("a", "b")], "system": "other"})
    assert (fault.reason, fault.detail) == (
        "role_order",
        "column system beside a system turn that says something else",
    )


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "call_turns",
    [
        [{"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}],
        [{"from": "tool_call", "value": {"name": "f", "arguments": '{"x": 1}'}}],
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "assistant", "tool_calls": json.dumps([CALL])}],
        [{"role": "assistant", "content": None, "tool_calls": [json.dumps(CALL)]}],
        [{"role": "assistant", "content": "", "function_call": {"name": "f", "parameters": {"x": 1}}}],
    ],
)
def test_a_tool_call_in_every_notation_is_the_same(call_turns):
    chat = [
        *turns("q"),
        *call_turns,
        {"role": "observation", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    assert sample_of({"conversations": chat, "tools": "[]"}).messages == [
        *turns("q"),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]


def test_calls_that_follow_each_other_or_a_text_are_one_turn():
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'}
    result = {"role": "tool_response", "content": "1"}
    chat = [*turns("q", "let me see"), call, call, result, result, {"role": "assistant", "content": "a"}]
    messages = sample_of({"messages": chat}).messages
    assert messages[1] == {"role": "assistant", "content": "let me see", "tool_calls": [CALL, CALL]}
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]


@pytest.mark.parametrize(
    "call",
    [
        '<tool_call>{"name": "f"}</tool_call>',
        '{"name": "f"}',
        "Action: f",
        "[f(1)]",
        "```python\nf()\n```",
        "动作：f",
    ],
)
def test_a_call_in_the_text_of_an_answer_may_have_a_result(call):
    chat = [*turns("q", call), {"role": "tool", "content": "1"}, {"role": "assistant", "content": "a"}]
    assert sample_of({"messages": chat}).messages == chat


def test_ids_of_calls_and_arguments_that_are_no_object_stay():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "not json"}}
    other = {"name": "g", "arguments": "[1]"}
    bare = {"name": "h"}
    chat = [
        *turns("q"),
        {"role": "assistant", "content": "", "tool_calls": [call, other, bare]},
        {"role": "tool", "content": "", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "a"},
    ]
    messages = sample_of({"messages": chat}).messages
    assert messages[1]["tool_calls"][0] == call
    assert [made["function"]["arguments"] for made in messages[1]["tool_calls"]] == ["not json", "[1]", {}]
    assert messages[2] == {"role": "tool", "content": "", "tool_call_id": "c1", "name": "f"}


def test_tools_are_the_same_as_list_text_and_single_object():
    tool = {"type": "function", "function": {"name": "f"}}
    for tools in ([tool], json.dumps([tool]), tool, [json.dumps(tool)]):
        assert sample_of({"query": "q", "response": "r", "tools": tools}).tools == [tool]
    for tools in ([tool["function"]], {"name": "f", "type": "function"}):
        assert sample_of({"query": "q", "response": "r", "tools": tools}).tools == [tool]
    other = {"type": "retrieval", "name": "f"}
    assert sample_of({"query": "q", "response": "r", "tools": [other]}).tools == [other]
    foreign = {"title": "f", "properties": {"x": {}}}
    assert sample_of({"query": "q", "response": "r", "tools": [foreign]}).tools == [foreign]
    for tools in (None, "", "  ", "[]", [], "null"):
        assert sample_of({"query": "q", "response": "r", "tools": tools}).tools is None
    assert sample_of({"query": "q", "response": "r", "functions": [tool]}).tools == [tool]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t"},
        {"response": "t"},
        {"messages": [{"role": "assistant", "content": "t"}]},
        {"text": "t", "id": 4},
    ],
)
def test_a_text_without_a_question_is_plain_text(row):
    sample = sample_of(row)
    assert (sample.text, sample.messages, sample.notes) == ("t", [], ("no_prompt",))


def test_which_answers_are_trained_on():
    chat = [*turns("a"), {"role": "assistant", "content": "b", "loss": False}, *turns("c", "d")]
    assert sample_of({"messages": chat}).messages[1]["loss"] is False
    for key, value, loss in (("weight", 0, False), ("train", True, True), ("loss_weight", 1.0, True)):
        messages = [*turns("x", "y"), *turns("a"), {"role": "assistant", "content": "b", key: value}]
        assert sample_of({"messages": messages}).messages[3]["loss"] is loss
    half = sample_of({"messages": [*turns("a"), {"role": "assistant", "content": "b", "weight": 0.5}]})
    assert (half.messages[1]["loss"], half.notes) == (True, ("weight_unused",))


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"messages": turns("a", "b"), "label": False}, "label_unused"),
        ({"prompt": "a", "completion": "b", "label": 1}, "label_unused"),
        ({"prompt": "a", "completion": "b", "label": 0}, "label_unused"),
        ({"prompt": "a", "completion": "b", "label": "false"}, "label_unused"),
        ({"prompt": "a", "completion": "b", "label": -1.0}, "label_unused"),
        ({"instruction": "a", "output": "b", "kto_tag": True}, "label_unused"),
        ({"instruction": "a", "context": "c", "response": "b"}, "context_unused"),
        ({"text": "a", "reasoning_content": "c"}, "reasoning_unused"),
        ({"messages": turns("a", "b"), "reasoning_content": ["c"]}, "reasoning_unused"),
        ({"query": "a", "response": "b", "thinking": True}, "reasoning_unused"),
        (
            {"messages": [*turns("a"), {"role": "assistant", "content": "b", "reasoning": ["c"]}]},
            "reasoning_unused",
        ),
    ],
)
def test_what_is_not_used_is_noted(row, note):
    assert note in sample_of(row).notes


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_what_was_thought_before_an_answer_is_kept_beside_it(key):
    answer = {"role": "assistant", "content": "b", "thought": "c"}
    beside = {"role": "assistant", "content": "b", key: "c"}
    rows = [{"messages": [*turns("a"), beside]}]
    if key != "reasoning":
        rows += [{"query": "a", "response": "b", key: "c"}, {"messages": turns("a", "b"), key: "c"}]
        rows += [{"prompt": turns("a"), "completion": "b", key: "c"}, {**rows[0], key: "c"}]
    for row in rows:
        sample = sample_of(row)
        assert (sample.messages, sample.notes) == ([*turns("a"), answer], ())
    empty = sample_of({"messages": [*turns("a"), {**beside, key: " "}]})
    assert empty.messages == turns("a", "b")
    bad = to_sample(Record({"messages": [*turns("a"), {**beside, key: "\ud800"}]}, ORIGIN), {})
    assert (bad.reason, bad.detail[:20]) == ("surrogate", "turn 1 (assistant): ")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "c", "signature": "s"},  # as Anthropic's
        {"type": "thinking", "thinking": [{"type": "text", "text": "c"}], "closed": True},  # as Mistral's
        {"type": "reasoning", "reasoning": "c"},
        {"type": "reasoning", "text": "c"},
    ],
)
def test_a_thought_may_be_the_first_part_of_an_answer(part):
    answer = {"role": "assistant", "content": [part, {"type": "text", "text": "b"}]}
    thoughtful = [*turns("a"), {"role": "assistant", "content": "b", "thought": "c"}]
    for more in ({}, {"thinking": "c"}):
        sample = sample_of({"messages": [*turns("a"), {**answer, **more}]})
        assert (sample.messages, sample.notes) == (thoughtful, ())
    calling = {**answer, "content": [part], "tool_calls": [{"name": "f"}]}
    chat = [*turns("a"), calling, {"role": "tool", "content": "1"}, *turns("a", "b")[1:]]
    assert sample_of({"messages": chat}).messages[1]["thought"] == "c"


def test_the_text_of_a_turn_may_stand_under_text():
    for role in ("role", "from"):
        said = [{role: "user", "text": "a"}, {role: "assistant", "text": "b", "reasoning": "c"}]
        thoughtful = [*turns("a"), {"role": "assistant", "content": "b", "thought": "c"}]
        assert sample_of({"messages": said}).messages == thoughtful
    named = [{"role": "user", "content": "a", "text": "x"}, {"role": "assistant", "value": "b", "text": "x"}]
    assert sample_of({"messages": named}).messages == turns("a", "b")
    inside = [
        {"role": "user", "content": {"text": "a"}},
        {"role": "assistant", "content": {"type": "text", "text": "b"}},
    ]
    assert sample_of({"messages": inside}).messages == turns("a", "b")
    calling = [
        *turns("a"),
        {"role": "assistant", "content": None, "text": "x", "tool_calls": [{"name": "f"}]},
    ]
    assert sample_of({"messages": calling}).messages[1]["content"] == ""


def test_nan_is_no_picture_and_no_thought():
    row = {"query": "a", "response": "b", "image": float("nan"), "thinking": float("nan")}
    assert (sample_of(row).messages, sample_of(row).notes) == (turns("a", "b"), ())
    assert unused_columns(row | {"score": float("nan")}, {}, ("query", "response")) == set()


def test_a_thought_in_a_column_belongs_to_the_last_answer():
    chat = sample_of({"messages": turns("a", "b", "c", "d"), "reasoning_content": "t"})
    assert [message.get("thought") for message in chat.messages] == [None, None, None, "t"]
    assert chat.columns == ("messages", "reasoning_content")
    written = turns("a", "<think>\nt\n</think>\n\nb")
    sample = sample_of({"messages": written, "reasoning_content": "t\n"})
    assert (sample.messages, sample.notes) == (written, ())  # it is learnt as a part of the answer


@pytest.mark.parametrize("ours", ["reasoning_content", "thinking"])
def test_thoughts_have_other_names(ours):
    check_columns({"cot": ours})
    thoughtful = [*turns("a"), {"role": "assistant", "content": "b", "thought": "c"}]
    in_turn = {
        "role": "assistant",
        "content": "b",
        "cot": "c",
        "reasoning_content": "old",
        "reasoning": "old",
    }
    for row in (
        {"query": "a", "response": "b", "cot": "c", "reasoning_content": "old"},
        {"messages": turns("a", "b"), "cot": "c"},
        {"messages": [*turns("a"), in_turn]},
    ):
        assert sample_of(row, {"cot": ours}).messages == thoughtful
        assert used_columns(row, {"cot": ours}) == {"cot"}


def test_other_column_names_through_the_mapping():
    assert sample_of({"问题": "q", "回答": "r"}, {"问题": "query", "回答": "response"}).messages == turns(
        "q", "r"
    )
    assert sample_of({"query": "old", "q2": "q", "response": "r"}, {"q2": "query"}).messages == turns(
        "q", "r"
    )
    dolly = {"instruction": "i", "context": "c", "response": "r"}
    assert sample_of(dolly, {"context": "input"}).messages == turns("i\nc", "r")
    assert sample_of({"turns": turns("a", "b")}, {"turns": "messages"}).messages == turns("a", "b")
    assert sample_of({"body": "t"}, {"body": "text"}).text == "t"
    assert sample_of(
        {"prompt": "p", "chosen": "c", "rejected": "r"}, {"chosen": "response"}
    ).messages == turns("p", "c")
    check_columns({"问题": "query", "turns": "messages"})
    with pytest.raises(UsageError, match="'qury' is no column of ours") as caught:
        check_columns({"question": "qury"})
    assert "did you mean query?" in caught.value.hint


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    "messages conversations role from content value query response instruction input output text tools "
                    "history system user assistant human gpt tool loss tool_calls function name arguments type".split()
                )
                | st.text(max_size=4),
                inner | st.sampled_from(["user", "assistant", "human", "gpt", "tool", "text", "[]", "{}"]),
                max_size=5,
            )
        ),
        max_leaves=30,
    ),
    st.sampled_from(
        ["messages", "conversations", "response", "tools", "history", "text", "label", "images", "x"]
    ),
)
def test_no_json_object_crashes(value, name):
    for row in (
        {name: value},
        {"query": "q", "response": "r", name: value},
        value if isinstance(value, dict) else {},
    ):
        assert_judged(row)


def assert_judged(row):
    result = to_sample(Record(row, ORIGIN), {})
    if isinstance(result, BadRow):
        assert result.reason in REASONS
        return
    assert result.text or result.messages[-1]["role"] == "assistant"
    keys = {"role", "content", "tool_calls", "loss", "name", "tool_call_id"}
    assert all(message.keys() <= keys for message in result.messages)
    json.dumps([result.messages, result.tools, result.text], ensure_ascii=False).encode()


SAID = st.sampled_from(
    [
        None,
        "",
        "a",
        "user",
        "[]",
        '{"name": "f"}',
        0,
        1,
        True,
        float("nan"),
        "\ud800",
        [],
        {},
        ["a"],
        [["a", "b"]],
    ]
    + [[None], {"name": "f"}, [{"type": "text", "text": "x"}]]
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from("system user assistant tool function_call".split()), "content": SAID},
    optional=dict.fromkeys("from value loss tools tool_calls function_call name".split(), SAID),
) | st.dictionaries(st.sampled_from("role human assistant input output system loss".split()), SAID)


@example({"messages": [{"role": "system", "content": None}]})
@example({"prompt": [{}], "completion": "b"})
@given(
    st.dictionaries(
        st.sampled_from("messages prompt instruction input output completion system tools text".split()),
        SAID | st.lists(TURN, min_size=1, max_size=3),
    )
)
def test_no_turns_of_a_known_shape_crash(row):
    assert_judged(row)


def test_of_two_keys_the_one_that_leaves_an_answer_out_counts():
    answer = {"role": "assistant", "content": "b", "loss": True, "weight": 0.0}
    sample = sample_of({"messages": [*turns("a", "x", "y"), answer, *turns("a", "x")]})
    assert [message.get("loss") for message in sample.messages] == [None, None, None, False, None, None]


@pytest.mark.parametrize("key", ["mask", "masked", "train_detail"])
def test_a_key_that_could_mean_what_is_learnt_or_what_is_not_stops(key):
    answer = {"role": "assistant", "content": "b", key: True}
    assert fault_of({"messages": [*turns("a"), answer]}).detail == (
        f"turn 1: {key} is not read; say loss: false where nothing is to be learnt"
    )
    assert sample_of({"messages": [*turns("a"), {**answer, key: None}]}).notes == ()


def test_what_would_be_handed_to_a_chat_template_is_said_not_to_be_used():
    row = {"messages": turns("a", "b"), "chat_template_kwargs": {"xml_tools": ["t"]}, "documents": []}
    assert sample_of(row).notes == ("template_inputs_unused",)
    assert sample_of({**row, "chat_template_kwargs": {}}).notes == ()
