"""`--columns theirs=ours`: what a column, or a key of a turn, is called, and flags that would have no effect."""

import json

import pytest
from test_formats import fault_of, sample_of, turns
from tiny_template import make_template, write_rows

from swiftlet.config.args import DataArgs
from swiftlet.data.mapping import check_used, unused_columns, used_columns
from swiftlet.data.prepare import prepare
from swiftlet.errors import UsageError

KEYS = {"speaker": "role", "utterance": "content"}
OR_ROLES = 'or write each turn as {"role": ..., "content": ...}'


def spoken(*texts):
    return [{"speaker": turn["role"], "utterance": turn["content"]} for turn in turns(*texts)]


def test_keys_of_turns_have_other_names():
    assert sample_of({"messages": spoken("a", "b")}, KEYS).messages == turns("a", "b")
    assert sample_of({"talk": spoken("a", "b")}, KEYS | {"talk": "messages"}).messages == turns("a", "b")
    assert sample_of({"messages": json.dumps(spoken("a", "b"))}, KEYS).messages == turns("a", "b")
    assert sample_of({"messages": turns("a", "b")}, KEYS).messages == turns("a", "b")


def test_a_key_of_a_turn_renames_no_column():
    assert sample_of({"text": "t"}, {"text": "content"}).text == "t"
    assert fault_of({"messages": ["a"]}, KEYS).detail == (
        'turn 0 is a text, expected an object: write each turn as {"role": ..., "content": ...}'
    )


def test_turns_with_unknown_keys_name_the_flag():
    assert fault_of({"messages": spoken("a", "b")}).detail == (
        "turn 0 has no role (its keys: speaker, utterance); name it with --columns speaker=role "
        "--columns utterance=content"
    )
    assert fault_of({"messages": spoken("a", "b")}, {"speaker": "role"}).detail == (
        "turn 0 (user) has no content (its keys: speaker, utterance); name it with --columns utterance=content"
    )
    assert fault_of({"messages": spoken("a", "b")}, {"speaker": "content"}).detail == (
        "turn 0 has no role (its keys: speaker, utterance); name it with --columns speaker=role "
        "--columns utterance=content"
    )


@pytest.mark.parametrize(
    ("turn", "flags"),
    [
        ({"who": "human", "value": "a"}, "--columns who=role"),
        ({"who": "human", "a": "b", "c": "d"}, "--columns who=role"),
        ({"who": "human", "what": 1}, "--columns who=role"),
        ({"who": "Tom", "what": "a"}, f"--columns KEY=role, {OR_ROLES}"),
        ({"who": "user", "whom": "bot"}, f"--columns KEY=role, {OR_ROLES}"),
        ({"role": "user", "a": "b", "c": "d"}, "--columns KEY=content"),
        ({"from": "user", "my words": "b"}, "--columns 'my words=content'"),
    ],
)
def test_a_flag_has_the_keys_name_where_one_key_alone_can_be_meant(turn, flags):
    assert fault_of({"messages": [turn]}).detail.endswith(f"; name it with {flags}")


def test_roles_have_other_names():
    row = {
        "messages": [{"role": "prompter", "content": "a"}, {"role": "model", "content": "b", "model": "m-7b"}]
    }
    roles = {"prompter": "user", "model": "assistant"}
    assert sample_of(row, roles).messages == turns("a", "b")
    assert used_columns(row, roles | {"bing": "assistant"}) == {*roles}
    said = {"talk": [{"who": "prompter", "value": "a"}, {"who": "model", "value": "b"}]}
    names = roles | {"who": "role", "talk": "messages"}
    assert sample_of(said, names).messages == turns("a", "b")
    assert used_columns(said, names) == {*names}


@pytest.mark.parametrize(
    ("role", "detail"),
    [
        ("prompter", 'unknown role "prompter"; name it with --columns prompter=user (or assistant, tool)'),
        ("User", 'unknown role "User" (did you mean user?); name it with --columns User=user'),
        ("System", 'unknown role "System" (did you mean system?); name it with --columns System=system'),
        ("my bot", "unknown role \"my bot\"; name it with --columns 'my bot=user' (or assistant, tool)"),
        ("a long text that was meant to be content", "unknown role"),
    ],
)
def test_an_unknown_role_names_the_flag(role, detail):
    assert fault_of({"messages": [{"role": role, "content": "a"}]}).detail == f"turn 0: {detail}"
    later = fault_of({"messages": [*turns("a"), {"role": "model", "content": "b"}]}).detail
    assert later == 'turn 1: unknown role "model"; name it with --columns model=assistant (or user, tool)'


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        ("System User Chatbot", "--columns System=system; other roles with User=user Chatbot=assistant"),
        ("seeker supporter seeker supporter", "--columns seeker=user (or assistant, tool); other roles with "
        "supporter=assistant"),
        ("user model user judge", "--columns model=assistant (or user, tool); other roles with judge=assistant"),
    ],
)  # fmt: skip
def test_all_unknown_roles_of_a_conversation_are_named_at_once(names, flags):
    said = [{"role": name, "content": "a"} for name in names.split()]
    first, others = flags.split("; other roles with ")
    detail = fault_of({"messages": said}).detail
    named = " ".join(f"--columns {one}" for one in others.split())
    assert detail.endswith(f"name it with {first}; other roles with {named}")
    known = dict(one.split("=") for one in others.split())
    assert fault_of({"messages": said}, known).detail.endswith(f"name it with {first}")


def test_unknown_roles_are_named_with_a_key_that_is_missing():
    said = [{"role": "user", "parts": ["a"]}, {"role": "model", "parts": ["b"]}]
    assert fault_of({"messages": said}).detail.endswith(
        "name it with --columns parts=content; other roles with --columns model=assistant"
    )
    names = {"parts": "content", "model": "assistant"}
    assert sample_of({"messages": said}, names).messages == turns("a", "b")


def test_a_system_role_by_another_name():
    said = [{"role": "System", "content": "s"}, *turns("a", "b")]
    columns = {"System": "system", "preset": "system"}
    assert sample_of({"messages": said}, columns).messages == [
        {**said[0], "role": "system"},
        *turns("a", "b"),
    ]
    assert used_columns({"messages": said}, columns) == {"System"}
    assert used_columns({"messages": turns("a", "b"), "preset": "s"}, columns) == {"preset"}
    assert sample_of({"messages": turns("a", "b"), "preset": "s"}, columns).messages[0]["content"] == "s"


def test_of_two_conversations_one_is_chosen():
    row = {
        "messages": turns("a", "b"),
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    }
    assert sample_of(row).messages == turns("a", "b")  # the same in two notations
    assert sample_of(row | {"conversation": turns("a")}).messages == turns("a", "b")  # a prompt alone
    other = row | {"conversations": turns("c", "d")}
    assert fault_of(other).detail == (
        "ambiguous chat columns: messages, conversations; choose with --columns messages=messages or "
        "--columns conversations=messages"
    )
    assert sample_of(other, {"messages": "messages"}).messages == turns("a", "b")
    assert sample_of(other, {"conversations": "messages"}).messages == turns("c", "d")


def test_which_flags_a_row_uses():
    columns = KEYS | {"q": "query", "talk": "messages"}
    assert used_columns({"q": None}, columns) == {"q"}
    assert used_columns({"talk": spoken("a")}, columns) == {"talk", *KEYS}
    assert used_columns({"messages": json.dumps(spoken("a"))}, columns) == {*KEYS}
    assert used_columns({"speaker": "a", "x": "[1", "y": [1, []], "z": {"speaker": 1}}, columns) == set()
    check_used(columns, {*columns})


@pytest.mark.parametrize(
    ("row", "columns", "unused"),
    [
        (
            {"query": "q", "response": "r", "system": "s", "history": [["a", "b"]], "tools": [{"name": "f"}]},
            {},
            set(),
        ),
        (
            {"query": "q", "response": "r", "id": 0, "score": None, "tags": [], "text": "t"},
            {},
            {"id", "text"},
        ),
        ({"text": "t", "title": "x"}, {}, {"title"}),
        ({"messages": turns("a", "b"), "query": "q"}, {}, {"query"}),
        ({"document": "d", "summary": "s"}, {"document": "text"}, {"summary"}),
        ({"question": "q", "answer": "a", "solution": "s"}, {"solution": "response"}, {"answer"}),
        ({"q": "a", "query": "b", "response": "r"}, {"q": "query"}, {"query"}),
        ({"q": None, "query": "b", "response": "r"}, {"query": "query", "q": "query"}, set()),
        ({"messages": spoken("a", "b"), "speaker": "x"}, KEYS, {"speaker"}),
        (
            {"contents": spoken("a", "b"), "instruction": {"x": "s"}},
            KEYS | {"contents": "messages"},
            {"instruction"},
        ),
    ],
)
def test_which_columns_go_into_no_sample(row, columns, unused):
    assert unused_columns(row, columns, sample_of(row, columns).columns) == unused


def test_the_log_says_which_columns_are_not_used(tmp_path):
    rows = [
        {"query": f"hi {n}", "response": "yo", "topic": "t" if n == 5 else "", "cot": "so"} for n in range(6)
    ]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    args = DataArgs(dataset=(path,), dataset_test_ratio=0.0)
    for _ in range(2):  # made, and found again
        made = prepare(
            args, make_template(tmp_path), max_length=64, cache_dir=tmp_path / "cache", bad_rows=None
        )
        assert made.report.lines()[1:3] == [
            "  columns not used: cot, topic",
            "    where cot holds thoughts before the answers, learn them with --columns cot=reasoning_content",
        ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"nosuch": "query"}, "--columns nosuch=query: no row has a column 'nosuch'"),
        ({"nosuch": "tool"}, "--columns nosuch=tool: no turn of a row has the role 'nosuch'"),
        (
            {"nosuch": "reasoning_content"},
            "--columns nosuch=reasoning_content: no row, and no turn of one, has 'nosuch'",
        ),
        ({"nosuch": "role"}, "--columns nosuch=role: no turn of a row has a key 'nosuch'"),
    ],
)
def test_a_flag_without_effect_stops_also_when_the_rows_are_known_already(tmp_path, columns, message):
    template = make_template(tmp_path)
    rows = [{"query": "hi", "response": "yo"}, {"q": "hi", "response": "yo"}] * 3
    path = str(write_rows(tmp_path / "rows.jsonl", rows))

    def act(columns):
        args = DataArgs(dataset=(path,), columns=columns, dataset_test_ratio=0.0)
        return prepare(args, template, max_length=64, cache_dir=tmp_path / "cache", bad_rows=None)

    assert len(act({"q": "query"}).train) == 6
    for _ in range(2):
        with pytest.raises(UsageError, match=message) as caught:
            act(columns | {"q": "query"})
        assert caught.value.hint == "write the name as it is in the rows, or leave the flag out"


@pytest.mark.parametrize(
    ("row", "columns", "detail"),
    [
        ({"q": "a", "reply": None}, "q=query reply=response", "column reply is null"),
        ({"q": "a", "reply": " "}, "q=query reply=response", "column reply is empty"),
        ({"q": "a", "reply": ["b"]}, "q=query reply=response", "column reply is a list, not a text; take one out: jq "
        "-c '.reply = .reply[0]' FILE"),
        ({"q": "", "reply": "b"}, "q=query reply=response", "q is empty"),
        ({"q": "a", "reply": "\ud800"}, "q=query reply=response", "column reply: half of a surrogate pair"),
        ({"q": "a", "x": "b", "y": "c"}, "q=query", "no answer column; columns: q, x, y; name it with"),
        ({"q": "a", "old": [["b"]], "response": "c"}, "q=query old=history", "old[0] has 1 items"),
        ({"q": "a", "fs": 3, "response": "c"}, "q=query fs=tools", "fs is not a list"),
        ({"q": "a", "sys": 3, "response": "c"}, "q=query sys=system", "column sys is a number"),
        ({"a1": "a", "key": "B", "B": "b"}, "a1=query key=answer", "column key names a choice, and column B would be "
        "lost: write the choices into the question, or leave them out with --columns key=response"),
        ({"q": "a", "prompt": "b", "query": "c", "r": "d"}, "q=instruction r=output", "ambiguous question columns: "
        "query, prompt, q; choose with --columns query=query"),
        ({"talk": ["a", "b"]}, "talk=messages", "turn 0 is a text, expected an object: write each turn as {\"role\": "
        "..., \"content\": ...}; where the texts are question and answer by turns: jq -c '.talk = [.talk | "),
        ({"talk": []}, "talk=messages", "column talk is empty"),
        ({"talk": "words"}, "talk=messages", "talk is a text that is not JSON"),
        ({"talk": turns("a", "b"), "old": [["a", "b"]]}, "talk=messages old=history", "column old beside column talk"),
    ],
)  # fmt: skip
def test_a_message_names_what_is_in_the_file(row, columns, detail):
    assert fault_of(row, dict(pair.split("=") for pair in columns.split())).detail.startswith(detail)


@pytest.mark.parametrize(
    ("row", "columns", "messages"),
    [
        ({"talk": turns("a"), "reply": "b"}, {"talk": "conversations"}, turns("a", "b")),
        ({"task": "a", "question": "b", "output": "c"}, {"task": "instruction"}, turns("a\nb", "c")),
        ({"said": turns("a"), "chosen": turns("", "b")[1:]}, {"said": "conversations"}, turns("a", "b")),
    ],
)
def test_the_flags_of_a_message_work_beside_those_that_were_given(row, columns, messages):
    detail = fault_of(row, columns).detail
    flags = dict(word.strip(",").split("=") for word in detail.split() if "=" in word)
    assert flags.keys() <= row.keys()
    first = dict([*flags.items()][:1]) if "or leave it out" in detail else flags
    assert sample_of(row, columns | first).messages == messages
