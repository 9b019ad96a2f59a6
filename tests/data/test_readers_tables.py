"""Tables: csv, tsv, parquet, arrow."""

import base64
import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pyarrow.parquet.encryption
import pytest
from test_readers import rows_of

from swiftlet.data.rows import BadRow, Record
from swiftlet.data.sources import count_records, read_records
from swiftlet.data.spec import parse_spec
from swiftlet.errors import DataError


@pytest.fixture
def read(tmp_path):
    """Write a file, read it, and return its rows."""

    def write_and_read(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return rows_of(path)

    return write_and_read


def cells_of(rows):
    assert all(isinstance(row, Record) for row in rows), rows
    return [row.row for row in rows]


def test_cells_stay_the_text_that_they_are(read):
    cells = [
        "007",
        "3.30",
        "NA",
        "null",
        "None",
        "nan",
        "1e5",
        "2024-01-02",
        "true",
        " spaces ",
        "{{name}}",
        "",
    ]
    rows = read("a.csv", "id,text\n" + "".join(f"{at},{cell}\n" for at, cell in enumerate(cells)))
    assert [row["text"] for row in cells_of(rows)] == cells


def test_line_breaks_quotes_and_commas_inside_quotes(read):
    rows = read("a.csv", b'\xef\xbb\xbfquery,response\r\n"a\r\nb","c, ""d"""\r\nlast,row')
    assert cells_of(rows) == [{"query": "a\r\nb", "response": 'c, "d"'}, {"query": "last", "response": "row"}]
    assert [(row.origin.line, row.origin.byte) for row in rows] == [(2, 19), (4, 38)]


def test_tabs_separate_in_tsv(read):
    assert cells_of(read("a.tsv", "query\tresponse\na, b\tc\n")) == [{"query": "a, b", "response": "c"}]


def test_the_index_column_of_pandas_and_empty_columns_at_the_end_are_not_taken(read):
    assert cells_of(read("a.csv", ",query,response,\n0,a,b,\n1,c,d\n")[:1]) == [
        {"query": "a", "response": "b"}
    ]
    assert cells_of(read("a.csv", "query,response\na,b,,\n")) == [{"query": "a", "response": "b"}]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("bye", "cells", "1 cell, the header has 3"),
        ("a,b,c,d", "cells", "4 cells, the header has 3"),
        (",,", "cells", "all cells are empty"),
        ("system, query ,response", "cells", "the header once more, as where tables were joined"),
        ('"a"b,c,d', "cells", 'a quote inside a quoted field is not written twice ("")'),
        ("a,b\0,c", "nul", "line 3 holds NUL bytes"),
    ],
)
def test_a_bad_row_costs_one_row(read, line, reason, detail):
    rows = read("a.csv", f"system,query,response\na,b,c\n{line}\nd,é,f\n")
    assert [isinstance(row, Record) for row in rows] == [True, False, True]
    bad = rows[1]
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.origin.line) == (reason, 3)
    assert detail in bad.detail


def test_a_quote_that_swallows_rows_names_all_their_lines(read):
    first, bad, last = read("a.csv", 'query,response\na,b\nc,"d\ne,f\ng,"h"\ni,j\n')
    assert (bad.origin.line, bad.reason) == (3, "cells")
    assert bad.detail.endswith('not written twice (""): lines 3 to 5 are read as one row')
    assert cells_of([first, last]) == [{"query": "a", "response": "b"}, {"query": "i", "response": "j"}]


def test_a_damaged_byte_costs_one_row_of_a_table_in_utf8(read):
    rows = read("a.csv", "query,response\né,b\n".encode() + b"\xff,c\nd,e\n")
    assert [isinstance(row, Record) for row in rows] == [True, False, True]
    assert (rows[1].reason, rows[1].detail) == ("utf8", "byte 0xff in line 3 is not UTF-8")


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        (
            "a.csv",
            'query,response\nok,fine\n"never closed,oops\nlost,row\n',
            "line 3: a quoted field is never",
            '("")',
        ),
        (
            "a.csv",
            "query\tresponse\na\tb\n",
            "one column named 'query\\tresponse': the separator is a tab",
            ".tsv",
        ),
        ("a.csv", "query;response\na;b\n", "the separator is a semicolon", "separate with a comma"),
        ("a.tsv", "query,response\na,b\n", "the separator is a comma", "separate with a tab"),
        ("a.csv", "sep=;\nquery;response\n", "the first line is Excel's 'sep=;'", "remove it"),
        (
            "a.csv",
            "sep=,\nquery,response\n",
            "the first line is Excel's 'sep=,'",
            "remove it; separate with a comma",
        ),
        ("a.csv", '"query";"response"\n"a";"b"\n', "the separator is a semicolon", "separate with a comma"),
        ("a.csv", '\ufeff"a|b"\t"c"\r\n', '\'"a|b"\\t"c"\': the separator is a tab', ".tsv"),
        ("a.tsv", '"query","response"\n', "the separator is a comma", "separate with a tab"),
        ("a.csv", '"a"b;c\n1;2\n', "the header: a quote inside", "mend the first line"),
        ("a.csv", "query,response,response\na,b,c\n", "column 'response' twice (cells 2 and 3)", "rename"),
        ("a.csv", ",\na,b\n", "the first line names no column", "column names"),
        ("a.csv", '"a"b,c\n1,2\n', "the header: a quote inside", "mend the first line"),
    ],
)
def test_a_broken_table_stops(tmp_path, name, content, message, hint):
    path = tmp_path / name
    path.write_text(content, newline="")
    with pytest.raises(DataError) as caught:
        list(read_records(parse_spec(str(path))))
    assert message in caught.value.message
    assert hint in caught.value.hint


def write_parquet(path, rows, schema=None):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=100)
    return parse_spec(str(path))


def test_a_null_field_of_a_struct_is_an_absent_field(tmp_path):
    calls = [
        {"function": {"name": "f", "arguments": {"x": 1}}},
        {"function": {"name": "g", "arguments": {"y": "2"}}},
    ]
    spec = write_parquet(
        tmp_path / "a.parquet", [{"messages": [{"role": "user", "tool_calls": calls}], "system": None}]
    )
    (row,) = read_records(spec)
    assert row.row == {"messages": [{"role": "user", "tool_calls": calls}], "system": None}


def test_dictionary_columns_and_the_pandas_index_are_no_trouble(tmp_path):
    table = pyarrow.table(
        {
            "query": pyarrow.array(["a", "a", "b"]).dictionary_encode(),
            "response": pyarrow.array(["x", "y", "z"], pyarrow.large_string()),
            "__index_level_0__": [3, 1, 2],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = list(read_records(parse_spec(str(tmp_path / "a.parquet"))))
    assert [(row.row["query"], row.row["response"], row.origin.line) for row in rows] == [
        ("a", "x", 1),
        ("a", "y", 2),
        ("b", "z", 3),
    ]


def test_a_sample_of_a_table_is_the_same_rows_as_reading_all(tmp_path):
    spec = write_parquet(tmp_path / "a.parquet", [{"text": f"row {number}"} for number in range(1000)])
    everything = {row.origin.line: row.row for row in read_records(spec)}
    drawn = list(read_records(parse_spec(f"{tmp_path / 'a.parquet'}#50")))
    assert len(drawn) == 50
    assert all(everything[row.origin.line] == row.row for row in drawn)
    assert count_records(spec) == 1000


def test_no_rows_and_a_cut_file_stop(tmp_path):
    empty = write_parquet(tmp_path / "a.parquet", [], pyarrow.schema([("text", pyarrow.string())]))
    for act in (lambda: list(read_records(empty)), lambda: count_records(empty)):
        with pytest.raises(DataError, match="no rows"):
            act()
    write_parquet(tmp_path / "b.parquet", [{"text": f"{number}"} for number in range(500)])
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    for act in (lambda spec: list(read_records(spec)), count_records):
        with pytest.raises(DataError, match="a damaged table"):
            act(parse_spec(str(tmp_path / "b.parquet")))


class OpenKeys(pyarrow.parquet.encryption.KmsClient):
    """Keys that anybody can read."""

    def wrap_key(self, key_bytes, master_key_identifier):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, master_key_identifier):
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("is_footer_plain", [False, True])
def test_an_encrypted_table_is_named(tmp_path, is_footer_plain):
    table, path = pyarrow.table({"query": ["a"], "response": ["b"]}), tmp_path / "a.parquet"
    config = pyarrow.parquet.encryption.EncryptionConfiguration(
        footer_key="key", column_keys={"key": ["response"]}, plaintext_footer=is_footer_plain
    )
    crypto = pyarrow.parquet.encryption.CryptoFactory(lambda _: OpenKeys())
    keys = crypto.file_encryption_properties(pyarrow.parquet.encryption.KmsConnectionConfig(), config)
    with pyarrow.parquet.ParquetWriter(path, table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    with pytest.raises(DataError) as caught:
        list(read_records(parse_spec(str(path))))
    assert caught.value.message == f"{path}: an encrypted Parquet file"
    assert caught.value.hint == "write it without encryption: no keys are taken here"


def test_a_text_that_is_not_utf8_costs_its_row(tmp_path):
    texts = pyarrow.array([b"ok", b"a\xff", None, b"end"])
    damaged = pyarrow.Array.from_buffers(pyarrow.string(), 4, texts.buffers())
    days = pyarrow.array([1, 2, 3, 4], pyarrow.date32())
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"query": list("abcd"), "response": damaged, "day": days}), path
    )
    rows = list(read_records(parse_spec(str(path))))
    assert [row.row["response"] for row in rows if isinstance(row, Record)] == ["ok", None, "end"]
    bad = rows[1]
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.origin.line) == ("utf8", 2)
    assert bad.detail == "column 'response': byte 0xff at byte 1 of the text is not UTF-8"
    (drawn,) = read_records(parse_spec(f"{path}#1"), seed=1)
    assert drawn in rows


@pytest.mark.parametrize(
    "times",
    [
        pyarrow.array([1 << 60], pyarrow.timestamp("ms")),
        pyarrow.array([1 << 30], pyarrow.date32()),
        pyarrow.array([1], pyarrow.timestamp("us", tz="Mars/Base")),
    ],
)
def test_a_time_that_python_cannot_hold_is_no_trouble_in_another_column(tmp_path, times):
    table = pyarrow.table({"query": ["a"], "response": ["b"], "time": times})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = read_records(parse_spec(str(tmp_path / "a.parquet")))
    assert row.row | {"time": None} == {"query": "a", "response": "b", "time": None}
    nested = pyarrow.table({"query": ["a"], "more": pyarrow.StructArray.from_arrays([times], ["time"])})
    pyarrow.parquet.write_table(nested, tmp_path / "b.parquet")
    (bad,) = read_records(parse_spec(str(tmp_path / "b.parquet")))
    assert (bad.reason, bad.origin.line) == ("schema", 1)
    assert "column 'more': a value that cannot be read" in bad.detail


@pytest.mark.parametrize("new", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_arrow_files_as_saved_to_disk(tmp_path, new):
    table = pyarrow.table({"query": ["a", "b"], "response": ["c", "d"]})
    with (
        pyarrow.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as file,
        new(file, table.schema) as writer,
    ):
        writer.write_table(table)
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    spec = parse_spec(str(tmp_path))
    assert [row.row for row in read_records(spec)] == table.to_pylist()
    assert count_records(spec) == 2


def test_a_damaged_arrow_file_stops(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"\xff\xff\xff\xff\x10\x00\x00\x00 not arrow at all")
    with pytest.raises(DataError, match="a damaged table"):
        list(read_records(parse_spec(str(tmp_path / "a.arrow"))))


def as_json(values):
    return pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(values, pyarrow.string()))


def test_values_of_the_type_for_json_are_what_their_text_says(tmp_path):
    """`datasets` writes turns so where some have tool calls with other arguments than others."""
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"x": 1}]},
    ]
    texts = [json.dumps(turn) for turn in (*turns, turns[0], None)]
    listed = pyarrow.ListArray.from_arrays([0, 2, 4], as_json(texts))
    inside = pyarrow.StructArray.from_arrays(
        [as_json(['{"a": null}', None]), pyarrow.array(["t", None])], ["arguments", "name"]
    )
    table = pyarrow.table(
        {"messages": listed, "tool": inside, "extra": as_json(['"words"', "1"]), "n": [1, 2]}
    )
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path)
    first = {
        "messages": turns,
        "tool": {"arguments": {"a": None}, "name": "t"},
        "extra": "words",
        "n": 1,
    }
    second = {"messages": [turns[0], None], "tool": {}, "extra": 1, "n": 2}
    assert [row.row for row in read_records(parse_spec(str(path)))] == [first, second]
    assert [row.row for row in read_records(parse_spec(f"{path}#1"))] in ([first], [second])


def test_a_value_of_the_type_for_json_that_is_none_costs_its_row(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"tools": as_json(["[{", '{"a": 1, "a": 2}', "[]"]), "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, path)
    broken, repeated, good = read_records(parse_spec(str(path)))
    assert (broken.reason, broken.detail) == ("schema", "column tools is a text that is not JSON")
    assert (repeated.reason, repeated.detail) == (
        "repeated_key",
        "column tools: key 'a' stands twice in one object",
    )
    assert good.row == {"tools": [], "n": 3}
