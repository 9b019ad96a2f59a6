"""Files of rows: what is read, what costs one row, and what stops with a message. JSON, JSON Lines and text."""

import bz2
import gzip
import json
import lzma
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftlet.data.reasons import REASONS
from swiftlet.data.rows import BadRow, Record
from swiftlet.data.sources import count_records, read_records
from swiftlet.data.spec import parse_spec
from swiftlet.errors import DataError

GOOD = '{"query": "你好", "response": "好"}'


@pytest.fixture
def make(tmp_path):
    """Write a file of the given name and return its path as text."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    return write


def rows_of(path):
    spec = parse_spec(str(path))
    rows = list(read_records(spec))
    assert count_records(spec) == len(rows)
    return rows


def good_rows(path):
    rows = rows_of(path)
    assert all(isinstance(row, Record) for row in rows), rows
    return [row.row for row in rows]


def bad_rows(path):
    rows = [row for row in rows_of(path) if isinstance(row, BadRow)]
    assert all(row.reason in REASONS for row in rows)
    return rows


def stop(path):
    with pytest.raises(DataError) as caught:
        list(read_records(parse_spec(path)))
    assert path in caught.value.message or path in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_lines_keep_their_number_and_byte(make):
    rows = rows_of(make("a.jsonl", f"\n{GOOD}\r\n  \n{GOOD}"))
    assert [(row.origin.line, row.origin.byte) for row in rows] == [
        (2, 1),
        (4, 1 + len(GOOD.encode()) + 2 + 3),
    ]


def test_f38_a_byte_order_mark_is_no_part_of_the_row(make):
    rows = rows_of(make("a.jsonl", b"\xef\xbb\xbf" + f"{GOOD}\n".encode() + b"\xef\xbb\xbf" + GOOD.encode()))
    assert [type(row) for row in rows] == [Record, Record]
    assert rows[0].origin.byte == 3


def test_only_a_line_feed_ends_a_line(make):
    text = "one\u2028two\u2029three\x85four\x0bfive\x0csix"
    assert good_rows(make("a.jsonl", json.dumps({"text": text}, ensure_ascii=False))) == [{"text": text}]
    assert good_rows(make("a.txt", f"{text}\nnext\n")) == [{"text": text}, {"text": "next"}]


def test_a_file_with_carriage_returns_alone_is_cut_there(make):
    assert len(good_rows(make("a.jsonl", f"{GOOD}\r{GOOD}\r"))) == 2


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ('{"query": "a", "response": "b",}', "json", "a trailing comma, column 3"),
        (
            "{'query': 'a'}",
            "json",
            "single quotes, column 2 (a Python dict was printed; write it with json.dumps)",
        ),
        ('{"query": "say "hi" now"}', "json", "a quote inside a string is not escaped, column 17"),
        ('{"query": "C:\\Users"}', "json", "an invalid escape in a string, column 14"),
        ('{"query": "a", "respon', "json", "a string does not end on its line, column 23"),
        ('{"query": "a"', "json", "the line ends too early, column 14"),
        ('{"query": "a", "response":', "json", "the line ends too early, column 27"),
        ('{"query": "a", "response":\r', "json", "the line ends too early, column 27"),
        ('{"query": None}', "json", "a word that JSON does not know, column 11 (write null, true or false)"),
        ('{"query": "a\tb"}', "json", "a raw line break or control character inside a string, column 13"),
        (GOOD + GOOD, "json", "something behind the end of the value, column"),
        (GOOD + ", ", "json", "a comma behind the row, column 33 (JSON Lines has none between rows)"),
        ('{"query": ' + "9" * 5000 + "}", "json", "too many digits"),
        ("\0\0\0\0", "nul", "NUL bytes (the file is damaged"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nesting", "nested too deep"),
        ('"words"', "schema", "a text, expected an object"),
        ("42", "schema", "a number, expected an object"),
        ("null", "schema", "null, expected an object"),
        ("true", "schema", "true or false, expected an object"),
        ("[]", "schema", "a list, expected an object"),
        ('[{"role": "user"}]', "schema", 'expected an object; a chat is written {"messages": [...]}: jq -c'),
        (
            json.dumps(GOOD),
            "schema",
            "a text, expected an object; its text is JSON once more: jq -c fromjson FILE",
        ),
    ],
)
def test_f37_a_bad_line_costs_one_line(make, line, reason, detail):
    path = make("a.jsonl", f"{GOOD}\n{line}\n{GOOD}\n")
    assert [isinstance(row, Record) for row in rows_of(path)] == [True, False, True]
    (bad,) = bad_rows(path)
    assert bad.reason == reason
    assert detail in bad.detail
    assert bad.origin.line == 2
    assert len(bad.sha1) == 40


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    "bad",
    [
        [GOOD + ","] * 2,
        [GOOD + ", \t"] * 30,
        ['{"query": "a", "response": ["b",', '{"query": '],
        ['{"query":', '{"query": "a",', '{"query": {"text": "a"},'],
    ],
)
def test_f37_bad_lines_at_the_top_cost_themselves_alone(make, name, bad):
    path = make(name, "\n".join([*bad, *[GOOD] * 8]))
    assert [row.origin.line for row in bad_rows(path)] == [number + 1 for number in range(len(bad))]
    assert len(rows_of(path)) == len(bad) + 8


@pytest.mark.parametrize(
    "content",
    [
        # rows in a list, turns in a row, a line each
        "[\n" + ",\n".join([GOOD] * 30) + "\n]",
        "[\n" + "\n,\n".join([GOOD] * 30) + "\n]",
        f"[\n{GOOD}\n]",
        '{"messages": [\n' + ",\n".join(['{"role": "user", "content": "a"}'] * 30) + "\n]}\n",
        '{"messages": [\n{"role": "user", "content": "a"}\n]}\n',
    ],
    ids=["rows", "rows and commas", "one row", "turns", "one turn"],
)
def test_a_value_over_many_lines_that_are_json_themselves_is_one_value(make, content):
    values = json.loads(content)
    assert good_rows(make("a.jsonl", content)) == (values if isinstance(values, list) else [values])


def test_a_comma_between_rows_over_several_lines_is_named(make):
    error = stop(make("a.jsonl", '{\n"text": "a"\n},\n{\n"text": "b"\n}\n'))
    assert "line 3, column 2: not JSON: a comma behind the row" in error.message


def test_f37_a_file_that_is_cut_off_in_its_last_line_costs_that_line(make):
    (bad,) = bad_rows(make("a.jsonl", f'{GOOD}\n{{"query": "a", "respon'))
    assert bad.detail == "not JSON: a string without its end, column 16 (the line is cut off)"


def test_f38_a_damaged_byte_costs_one_line_of_a_file_in_utf8(make):
    (bad,) = bad_rows(make("a.jsonl", GOOD.encode() + b'\n{"query": "\xe9", "response": "b"}\n'))
    assert (bad.reason, bad.origin.line) == ("utf8", 2)
    assert "byte 0xe9 at byte 11 of the line" in bad.detail


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("gbk", "等于几，苹果还剩几个？", "GBK"),
        ("cp1252", "café “oui”", "CP1252"),
        ("shift_jis", "こんにちは、カタカナです", "SHIFT-JIS"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_f38_a_file_in_another_encoding_stops_with_the_command_that_converts_it(
    make, encoding, text, shown, name
):
    row = json.dumps({"query": "a", "response": text}, ensure_ascii=False)
    content = {"a.jsonl": f"{{}}\n{row}\n", "a.json": f"[\n{row}]", "a.csv": f"query,response\na,{text}\n"}
    path = make(name, content.get(name, f"plain\n{text}\n").encode(encoding))
    error = stop(path)
    assert "not UTF-8 at line 2" in error.message
    assert f"it looks like {shown}" in error.message
    assert error.hint == f"convert it: iconv -f {shown} -t UTF-8 {path} > utf8-{name}"


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.jsonl", b"", "the file is empty (0 bytes)", "again"),
        ("a.jsonl", b" \n\n\t\n", "no rows", "holds rows"),
        ("a.json", b"[]", "no rows", "holds rows"),
        ("a.csv", b"query,response\n", "no rows after the header", "holds rows"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS",
            "git lfs pull",
        ),
        ("a.csv", b"PK\x03\x04 sheet", "a zip or Excel file (it starts with PK)", "save the sheet as CSV"),
        ("a.json", b"\xd0\xcf\x11\xe0 sheet", "an old Excel", "save the sheet as CSV"),
        ("a.jsonl", GOOD.encode("utf-16"), "UTF-16 text", "iconv -f UTF-16"),
        ("a.jsonl", GOOD.encode("utf-16-le"), "UTF-16 text", "iconv -f UTF-16"),
        ("a.jsonl", GOOD.encode("utf-16-be"), "UTF-16 text", "iconv -f UTF-16"),
        ("a.jsonl", GOOD.encode("utf-32"), "UTF-32 text", "iconv -f UTF-32"),
        ("a.jsonl", b" " * 257 + b"ustar\x0000", "a tar archive", "tar -xf"),
        ("a.jsonl.gz", gzip.compress(b"\0" * 257 + b"ustar\x0000", mtime=0), "a tar archive", "tar -xf"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "a table inside a compressed file", "unpack it"),
        ("a.arrow", lzma.compress(b"ARROW1\0\0"), "a table inside a compressed file", "unpack it"),
        ("a.jsonl", bz2.compress(b"PAR1"), "a table inside a compressed file", "unpack it"),
        ("a.json", b"<!DOCTYPE html><html>", "a web page, not data", "download"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", "compressed with zstd", "zstd -d"),
        ("a.parquet", GOOD.encode(), "not Parquet: no PAR1 at the start (it looks like JSON)", "rename it"),
        ("a.parquet", b"PAR1 and nothing else", "a damaged table", "fetch"),
        ("a.jsonl", b"PAR1 and more", "Parquet under another name", "end in .parquet"),
        ("a.jsonl", b"\x80\x04\x95abc", "a Python pickle, which is never read", "JSON Lines"),
        ("a.pkl", b"\x80\x05\x95abc", "a Python pickle, which is never read", "JSON Lines"),
        ("a.doc", b"words", "unknown suffix '.doc'", ".jsonl"),
        ("a.xlsx", b"PK\x03\x04 sheet", "a zip or Excel file (it starts with PK)", "save the sheet as CSV"),
        ("a.zip", b"PK\x03\x04 rows", "a zip or Excel file (it starts with PK)", "unpack it"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd....", "compressed with zstd", "zstd -d"),
        ("a.tar.gz", gzip.compress(b"\0" * 257 + b"ustar\x0000", mtime=0), "a tar archive", "tar -xf"),
    ],
)
def test_files_that_are_no_data_are_named(make, name, content, message, hint):
    error = stop(make(name, content))
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (f"{GOOD}\n{GOOD}\n", "rows of JSON, not plain text", "rename it to end in .jsonl"),
        (f"\ufeff\n{GOOD}", "rows of JSON, not plain text", "rename it to end in .jsonl"),
        (f"[{GOOD}]", "rows of JSON, not plain text", "rename it to end in .json"),
        (f"[\n  {GOOD}\n]", "rows of JSON, not plain text", "rename it to end in .json"),
        ("id,query,response\n1,a,b", "the columns id, query, response, not plain text", "end in .csv"),
        ('"instruction","output"\r\n"a","b"', "the columns instruction, output", "end in .csv"),
        ("query\tresponse\na\tb", "a table with the columns query, response", "end in .tsv"),
    ],
)
def test_rows_and_tables_are_no_plain_text(make, content, message, hint):
    error = stop(make("a.txt", content))
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    "line", ["[Verse 1]", "{x} of {y}", '["a", "b"]', "Dear reader, the response, and the query", "query"]
)
def test_plain_text_may_look_a_little_like_rows(make, line):
    assert good_rows(make("a.txt", f"{line}\nmore\n")) == [{"text": line}, {"text": "more"}]


def test_nul_bytes_cost_one_line_of_a_text(make):
    rows = rows_of(make("a.txt", b"one\nt\0wo\nthree\n"))
    assert [getattr(row, "reason", "taken") for row in rows] == ["taken", "nul", "taken"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "问题,回答\n苹果还剩几个？,三个\n"),
        ("a.txt", "今天天气很好，我们去公园。\u3000😀\n"),
        ("a.tsv", "問題\t答え\nこんにちは\tはい\n"),
        ("a.txt", "words\n"),
    ],
)
def test_f38_wide_characters_are_seen_also_where_the_text_begins_with_chinese(make, name, text, encoding):
    path = make(name, (text * 300).encode(encoding))
    error = stop(path)
    shown = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert f"{shown[:6]} text without a byte order mark" in error.message
    assert error.hint == f"convert it: iconv -f {shown} -t UTF-8 {path} > utf8-{name}"


@pytest.mark.parametrize("row", ['{"query": "a", "response": "b"}', GOOD])
@pytest.mark.parametrize("at", [40, 41])
def test_nul_bytes_in_a_text_are_no_wide_characters(make, row, at):
    content = bytearray(f"{row}\n".encode() * 30 + f"{GOOD}\n".encode())
    content[at] = 0
    content[100] = 0xFF
    assert {bad.reason for bad in bad_rows(make("a.jsonl", bytes(content)))} == {"nul", "utf8"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.xz", "a.txt.bz2"])
def test_compressed_files_are_read_whatever_their_name(make, pack, name):
    content = {".csv": b"query,response\na,b\n", ".txt": b"words\n"}.get(name[1:5], f"{GOOD}\n".encode())
    assert len(good_rows(make(name, pack(content)))) == 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_an_archive_that_is_cut_off_stops(make, name):
    lines = ["query,response", *(f"q{number},r{hash(number) ** 3}" for number in range(20_000))]
    rows = [json.dumps({"query": line}) for line in lines]
    text = {"a.jsonl.gz": "\n".join(rows), "a.json.gz": f"[{','.join(rows)}]", "a.csv.gz": "\n".join(lines)}[
        name
    ]
    packed = gzip.compress(text.encode())
    assert "damaged or cut off" in stop(make(name, packed[: len(packed) // 2])).message


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        f"[{GOOD},{GOOD}]",
        f"[\n {GOOD},\n {GOOD}\n]\n",
        json.dumps([json.loads(GOOD)] * 2, indent=2),
        "\n".join([json.dumps(json.loads(GOOD), indent=1)] * 2),
        f"{GOOD}\n{GOOD}\n",
        f"\ufeff[{GOOD},\n{GOOD}]",
    ],
)
def test_the_layout_of_json_is_seen_from_the_content(make, name, content):
    assert good_rows(make(name, content)) == [json.loads(GOOD)] * 2


def test_rows_of_a_list_count_as_lines_and_know_their_byte(make):
    text = f"[ {GOOD}, 7,\n{GOOD}]"
    rows = rows_of(make("a.json", text))
    assert [row.origin.line for row in rows] == [1, 2, 3]
    for row, start in zip(rows, ("{", "7", "{"), strict=True):
        assert text.encode()[row.origin.byte :].decode().startswith(start)
    assert rows[1].detail == "a number, expected an object"


def test_one_object_with_a_data_column_is_one_row(make):
    assert good_rows(make("a.json", '{\n "messages": []\n}')) == [{"messages": []}]


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (
            '{"version": 1, "data": [{"query": "a"}]}',
            "keys version, data, expected a list",
            "jq -c '.data[]' {path} >",
        ),
        (
            '{"rows": [{"row_idx": 0, "row": {"query": "a"}}]}',
            "keys rows, expected",
            "jq -c '.rows[].row' {path} >",
        ),
        ('{"the rows": [{"query": "a"}]}', "keys the rows, expected", """jq -c '.["the rows"][]' {path} >"""),
        ('{"q1": {"query": "a"}, "q2": {"query": "b"}}', "keys q1, q2, expected", "jq -c '.[]' {path} >"),
        ('{"first": {"file_name": "a.json"}, "b": {"hf_hub_url": "a/b"}}', "registry of datasets", ":first"),
        ('{"query": ["a", "b"], "response": ["c", "d"]}', "written column by column", 'orient="records"'),
        ('{"query": {"0": "a"}, "response": {"0": "c"}}', "written column by column", 'orient="records"'),
        ('{"a": 1}', "keys a, expected a list of rows", "a list of objects"),
        ("{}", "an empty object", "a list of objects"),
    ],
)
def test_one_object_that_is_no_row_stops_and_says_how_to_take_the_rows_out(make, content, message, hint):
    path = make("a.json", content)
    error = stop(path)
    assert message in error.message
    assert hint.replace("{path}", str(path)) in error.hint


def as_cesu8(text):
    """Return a text as Java and old MySQL write it: a character beyond the first 65536 as two halves."""
    halves = text.encode("utf-16-le")
    units = [halves[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(halves), 2)]
    return "".join(units).encode("utf-8", "surrogatepass")


def run_hint(path, tmp_path):
    """Type what the error of a file says, and return the file that it writes."""
    hint = stop(path).hint
    command = hint.partition(": ")[2]
    tools = [part.split()[0] for part in command.split(" | ")]
    if not all(map(shutil.which, tools)):
        pytest.skip(f"not here: {tools}")
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, check=True, timeout=60)
    return str(tmp_path / command.rpartition("> ")[2].strip("'"))


@pytest.mark.parametrize("pack", [None, gzip.compress])
@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", '{"text": "a😀"}\n', 1),
        ("a.jsonl", '{"text": "é"}\n{"text": "a😀"}\n', 2),  # other characters are as in UTF-8
        ("a.json", '[{"text": "é"},\n {"text": "a😀"}]', 2),
        ("a.csv", "text,é\na😀,b\n", 2),
        ("a.txt", "\ufeffé\na😀\n", 2),
    ],
)
def test_halves_of_characters_are_named_with_the_command_that_joins_them(
    make, tmp_path, name, content, line, pack
):
    raw = as_cesu8(content)
    path = make(name if pack is None else f"{name}.gz", raw if pack is None else pack(raw))
    error = stop(path)
    byte = raw.index(0xED)
    assert error.message == f"{path}: not UTF-8 at line {line}, byte {byte} (0xed); it looks like CESU-8"
    mended = run_hint(path, tmp_path)
    assert mended == str(tmp_path / f"utf8-{name}")
    assert good_rows(mended)[-1]["text"] == "a😀"


def test_one_half_of_a_character_costs_its_line(make):
    path = make("a.jsonl", GOOD.encode() + b'\n{"text": "\xed\xa0\xbd"}\n')
    assert [row.reason for row in bad_rows(path)] == ["utf8"]
    alone = make("b.jsonl", b'{"text": "\xed\xa0\xbd"}\n' * 3)  # and is no letter of another encoding
    assert [row.reason for row in bad_rows(alone)] == ["utf8"] * 3


def test_a_packed_file_in_another_encoding_is_unpacked_by_the_command_that_converts_it(make, tmp_path):
    path = make("A.jsonl.gz", gzip.compress(f"{GOOD}\n".encode("gbk")))
    assert stop(path).hint == f"convert it: gzip -dc {path} | iconv -f GBK -t UTF-8 > utf8-a.jsonl"
    assert good_rows(run_hint(path, tmp_path)) == [json.loads(GOOD)]


@pytest.mark.parametrize(
    ("name", "outer", "inner", "tools"),
    [
        ("a.jsonl.gz.gz", gzip.compress, gzip.compress, "gzip inside gzip"),
        ("a.jsonl.gz", gzip.compress, gzip.compress, "gzip inside gzip"),
        ("a.jsonl", gzip.compress, bz2.compress, "bzip2 inside gzip"),
        ("a.jsonl.gz.bz2", bz2.compress, gzip.compress, "gzip inside bzip2"),
        ("a.jsonl.xz", lzma.compress, bz2.compress, "bzip2 inside xz"),
    ],
)
def test_files_that_are_compressed_twice_are_named(make, tmp_path, name, outer, inner, tools):
    path = make(name, outer(inner(GOOD.encode())))
    assert stop(path).message == f"{path}: compressed twice ({tools})"
    unpacked = run_hint(path, tmp_path)
    assert unpacked == str(tmp_path / "unpacked-a.jsonl")
    assert good_rows(unpacked) == [json.loads(GOOD)]


def test_zstd_inside_another_compression_is_named(make):
    path = make("a.jsonl.zst.gz", gzip.compress(b"\x28\xb5\x2f\xfd and more"))
    assert stop(path).message == f"{path}: compressed twice (zstd inside gzip)"
    assert "gzip -dc" in stop(path).hint and "| zstd -dc >" in stop(path).hint


def test_commands_that_mend_a_file_can_be_pasted_whatever_its_name_is(make):
    path = make("my rows.json", '{"data": [{"query": "a"}]}')
    assert stop(path).hint == f"take data out: jq -c '.data[]' '{path}' > rows.jsonl"
    path = make("my 表.csv", "问题,回答\n好,好的\n".encode("gbk"))
    assert stop(path).hint == f"convert it: iconv -f GBK -t UTF-8 '{path}' > 'utf8-my 表.csv'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"[\n{GOOD},\n]", "line 3, column 1: not JSON: a trailing comma"),
        (f"[\n{GOOD}\n{GOOD}]", "line 3, column 1: not JSON: a comma is missing between two rows"),
        (f"[\n{GOOD},\n" + '{"query": "a", "resp', "line 3, column 16: not JSON: a string without its end"),
        (f"[\n{GOOD}", "line 2, column 33: not JSON: the list is cut off"),
        (f"[\n{GOOD},\n", "line 3, column 1: not JSON: the list is cut off"),
        (f"[{GOOD}]\nmore", "line 2, column 1: something behind the end of the list"),
        ("[" * 100_000, "nested too deep"),
        ('[{"a": ' + "9" * 5000 + "}]", "too many digits"),
    ],
)
def test_a_broken_list_stops_at_the_place(make, content, message):
    assert message in stop(make("a.json", content)).message


def test_a_damaged_byte_in_a_list_stops_at_the_place(make):
    error = stop(make("a.json", f"[{GOOD},\n".encode() + b'{"query": "\xff"}]'))
    assert "not UTF-8 at line 2, byte" in error.message
    assert "(0xff)" in error.message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes_behind_a_good_line_are_rows_or_bad_rows_one_a_line(make, garbage):
    content = b"\n".join([GOOD.encode(), *garbage])
    num_lines = sum(
        1 for line in content.split(b"\n") if line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n\x0b\x0c")
    )
    rows = rows_of(make("garbage.jsonl", content))
    assert len(rows) == num_lines
    assert all(isinstance(row, (Record, BadRow)) for row in rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.binary(max_size=60), st.sampled_from(["g.jsonl", "g.json", "g.csv", "g.tsv", "g.txt", "g.parquet"]))
def test_any_file_is_read_or_refused_with_a_hint(make, content, name):
    try:
        rows_of(make(name, content))
    except DataError as error:
        assert error.hint


def test_f44_a_row_of_ten_megabytes_is_a_row(make):
    text = "ab" * 5_000_000
    assert good_rows(make("a.jsonl", json.dumps({"text": text})))[0]["text"] == text
    assert good_rows(make("a.csv", f'text,id\n"{text}",1\n'))[0]["text"] == text
