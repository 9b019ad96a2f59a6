"""Rows of layouts that no flag reaches: the command that a message names writes the file so that it can be read."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
from test_formats import fault_of, sample_of, turns

from swiftlet.data.rows import Record
from swiftlet.data.sources import read_records
from swiftlet.data.spec import parse_spec

HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\ne"
CALL = """<functioncall> {"name": "f", "arguments": '{"x": 1}'}"""
GLAIVE = {
    "system": 'SYSTEM: Use these: -\n{"name": "f"}',
    "chat": f"USER: a\nb\n\n\nASSISTANT: {CALL} <|endoftext|>\n\n\nFUNCTION RESPONSE: 1\n\n\nASSISTANT: c\n\n\nd: e "
    "<|endoftext|>\n\n\n",
}
TEXTAREA = {"type": "textarea", "from_name": "reply", "to_name": "text", "value": {"text": ["b", "c"]}}
CHOICE = {"type": "choices", "from_name": "kind", "to_name": "text", "value": {"choices": ["b"]}}
RATING = {"type": "rating", "from_name": "stars", "to_name": "text", "value": {"rating": 4}}


def said(role, content):
    return {"role": role, "content": content}


def task(annotations, **data):
    return {"id": 1, "data": data, "annotations": annotations, "predictions": []}


LAYOUTS = {
    "preferences": (
        {
            "input": {
                "messages": [said("system", "s"), *turns("a")],
                "tools": [],
                "parallel_tool_calls": True,
            },
            "preferred_output": turns("a", "b")[1:],
            "non_preferred_output": turns("a", "c")[1:],
        },
        [said("system", "s"), *turns("a", "b")],
    ),
    "transcript": ({"chosen": HH, "rejected": HH + "f"}, turns("a", "b", "c", "d\ne")),
    "transcript alone": ({"the chat's": "Human: a\n\nAssistant: b"}, turns("a", "b")),
    "calls": (
        GLAIVE,
        [
            said("system", 'Use these: -\n{"name": "f"}'),
            *turns("a\nb", CALL),
            said("tool", "1"),
            said("assistant", "c\n\n\nd: e"),
        ],
    ),
    "segments": (
        {
            "segments": [
                {"label": False, "text": "<s>a\n"},
                {"label": False, "text": "b"},
                {"label": True, "text": "c"},
                {"label": True, "text": "d</s>"},
            ]
        },
        turns("a\nb", "cd"),
    ),
    "steps": ({"prompt": "a", "completions": ["b", "c"], "labels": [True, 1]}, turns("a", "b\nc")),
    "annotations": (
        task([{"result": [], "was_cancelled": True}, {"result": [RATING, TEXTAREA]}], id="7", text="a"),
        turns("a", "b\nc"),
    ),
    "choices": (task([{"result": [CHOICE]}], prompt="a", text="t"), turns("a", "b")),
}


def command_of(row):
    found = re.search(r"jq -c .* FILE > rows\.jsonl", fault_of(row).detail)
    assert found, fault_of(row).detail
    return found.group().removesuffix(" > rows.jsonl")


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq on this machine")
@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_program_that_is_said_makes_conversations(tmp_path, name, is_list):
    row, messages = LAYOUTS[name]
    source, target = tmp_path / "source", tmp_path / "rows.jsonl"
    source.write_text(json.dumps([row, row]) if is_list else json.dumps(row) + "\n" + json.dumps(row))
    words = shlex.split(command_of(row).replace("FILE", shlex.quote(str(source))))
    if is_list:
        words[2] = f".[] | {words[2]}"
    with open(target, "wb") as file:
        subprocess.run(words, stdout=file, check=True, timeout=60)
    rows = list(read_records(parse_spec(str(target))))
    assert [type(one) for one in rows] == [Record, Record]
    assert [sample_of(one.row).messages for one in rows] == [messages, messages]


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq on this machine")
@pytest.mark.parametrize(
    ("row", "alike"),
    [
        ({"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}, "steps"),
        (task([], text="a"), "annotations"),
    ],
)
def test_what_has_no_answer_is_left_out_by_the_program(tmp_path, row, alike):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    assert command_of(row) == command_of(LAYOUTS[alike][0])
    words = shlex.split(command_of(row).replace("FILE", shlex.quote(str(path))))
    assert subprocess.run(words, capture_output=True, check=True, timeout=60).stdout == b""


def test_a_program_names_the_columns_of_the_file():
    row = {"task": "a", "completions": ["b"], "labels": [True]}
    assert "content: .task}" in fault_of(row, {"task": "prompt"}).detail


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "\n\nHuman: a\n\nAssistant:", "reply": "b"},  # the answer stands beside it
        {"chat": "USER: a", "system": "s"},
        {"segments": [{"start": 0, "text": "a"}]},
        {"prompt": "a", "completions": ["b", "c"], "labels": [True]},
        task([{"value": 1}], text="a"),
        task([{"result": [CHOICE]}], image="a.png"),
        task([{"result": [CHOICE]}], number=1),
    ],
)
def test_rows_that_only_look_alike_get_no_program(row):
    assert "messages: " not in fault_of(row).detail
