"""Two values under one name: neither is trained on as if it were the only one."""

import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from test_formats import fault_of, turns
from test_readers import rows_of

from swiftlet.data.rows import BadRow, Record
from swiftlet.data.sources import read_records
from swiftlet.data.spec import parse_spec
from swiftlet.errors import DataError

GOOD = '{"query": "a", "response": "b"}'
REPEATED = '{"query": "a", "response": "good", "response": "bad"}'


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("row", "key"),
    [
        (REPEATED, "response"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
        ('{"x": {"y": 1, "y": 1}, "query": "a", "response": "b"}', "y"),
    ],
)
def test_a_key_that_stands_twice_costs_its_row(tmp_path, name, row, key):
    rows = [GOOD, row, GOOD]
    path = tmp_path / name
    path.write_text(f"[{','.join(rows)}]" if name == "a.json" else "\n".join(rows))
    found = rows_of(path)
    assert [isinstance(one, Record) for one in found] == [True, False, True]
    bad = found[1]
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("repeated_key", f"key '{key}' stands twice in one object")
    assert (bad.origin.line, len(bad.sha1)) == (2, 40)


def test_a_file_of_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(REPEATED)
    (bad,) = rows_of(path)
    assert bad.reason == "repeated_key"


def test_the_row_behind_a_broken_one_is_not_blamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{REPEATED} x\n{GOOD}\n[{REPEATED}]\n{GOOD}\n")
    rows = rows_of(path)
    assert [getattr(row, "reason", None) for row in rows] == ["json", None, "schema", None]


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"messages": f"[{REPEATED}]"}, "messages: key 'response' stands twice in one object"),
        ({"query": "q", "response": "r", "tools": f"[{REPEATED}]"}, "tools: key 'response' stands twice"),
        (
            {"messages": [*turns("q"), {"role": "tool_call", "content": '{"name": "f", "name": "g"}'}]},
            "turn 1: tool call: key 'name' stands twice",
        ),
        (
            {
                "messages": [
                    *turns("q"),
                    {"role": "tool_call", "content": {"name": "f", "arguments": '{"x": 1, "x": 2}'}},
                ]
            },
            "turn 1: tool call: key 'x' stands twice",
        ),
    ],
)
def test_a_key_that_stands_twice_in_json_text(row, detail):
    fault = fault_of(row)
    assert fault.reason == "repeated_key"
    assert detail in fault.detail


def test_equal_keys_of_different_objects_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"messages": turns("a", "b"), "x": {"messages": 1}}
    path.write_text(json.dumps(row))
    assert [one.row for one in rows_of(path)] == [row]


def test_columns_of_a_table_with_one_name_stop(tmp_path):
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([text]) for text in "abc"], names=["query", "response", "response"]
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with (
        pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(DataError, match="column 'response' stands twice") as caught:
            list(read_records(parse_spec(str(tmp_path / name))))
        assert caught.value.hint == "rename one of them"
