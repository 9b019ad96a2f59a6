"""Where rows come from: files, folders, hub caches, generated sets; and how a sample is drawn."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from swiftlet import log
from swiftlet.data.datasets import DATASETS
from swiftlet.data.rows import BadRow, Record
from swiftlet.data.sources import count_records, files_of, read_records, shape
from swiftlet.data.spec import parse_spec
from swiftlet.errors import DataError, SwiftletError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_rows(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(text, seed=42):
    return [row.row["text"] for row in read_records(parse_spec(text), seed=seed)]


@pytest.fixture
def said(caplog):
    """The warnings of the program."""
    logger = log.logger()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """An empty Hugging Face cache and no way to any hub; returns a function that puts a dataset into the cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")

    def put(repo, name, rows):
        home = tmp_path / "hf" / "hub" / f"datasets--{repo.replace('/', '--')}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(COMMIT)
        path = home / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(row) for row in rows))

    return put


def test_a_sample_is_drawn_from_the_whole_set_by_the_seed_in_its_order(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", map(str, range(1000)))
    drawn = texts_of(f"{path}#100")
    assert len(drawn) == len(set(drawn)) == 100
    assert drawn == sorted(drawn, key=int)
    assert int(drawn[0]) < 100 and int(drawn[-1]) > 900
    assert drawn == texts_of(f"{path}#100")
    assert drawn != texts_of(f"{path}#100", seed=43)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_sample_holds_the_rows_that_reading_all_gives(tmp_path, suffix):
    values = [f"row {number}" for number in range(50)]
    path = tmp_path / f"rows{suffix}"
    lines = [json.dumps({"text": value}) for value in values]
    content = {
        ".jsonl": "\n".join(lines),
        ".json": f"[{','.join(lines)}]",
        ".csv": "\n".join(["text", *values]),
    }
    path.write_text(content.get(suffix, "\n".join(values)))
    everything = {row.origin: row.row for row in read_records(parse_spec(str(path)))}
    drawn = list(read_records(parse_spec(f"{path}#7")))
    assert len(drawn) == 7
    assert all(everything[row.origin] == row.row for row in drawn)


def test_a_sample_spans_the_files_of_a_folder_and_counts_bad_rows(tmp_path):
    for name in "abc":
        write_rows(tmp_path / f"{name}.jsonl", [f"{name}{number}" for number in range(20)])
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write("not json\n" * 20)
    rows = list(read_records(parse_spec(f"{tmp_path}#60"), seed=1))
    assert len(rows) == 60
    assert {Path(row.origin.path).name for row in rows} == {"a.jsonl", "b.jsonl", "c.jsonl"}
    assert any(isinstance(row, BadRow) for row in rows)
    assert count_records(parse_spec(str(tmp_path))) == 80


def test_more_than_there_is_takes_all_and_says_so(tmp_path, said):
    path = write_rows(tmp_path / "rows.jsonl", "abc")
    assert texts_of(f"{path}#3") == ["a", "b", "c"]
    assert not said.messages
    assert texts_of(f"{path}#9") == ["a", "b", "c"]
    assert said.messages == [f"warning: {path}#9: asked for 9 rows, there are 3: all are taken"]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(num_rows):
        path = write_rows(tmp_path / f"{num_rows}.jsonl", ("x" * 500 for _ in range(num_rows)))
        tracemalloc.start()
        assert sum(1 for _ in read_records(parse_spec(str(path)))) == num_rows
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20_000) < 1.5 * peak(500)


def test_descriptions_hidden_files_and_notes_are_no_rows(tmp_path):
    write_rows(tmp_path / "data" / "rows.jsonl", "a")
    for name in (
        "README.md",
        "dataset_infos.json",
        ".hidden.jsonl",
        ".cache/x.jsonl",
        "_old/x.jsonl",
        "requirements.txt",
    ):
        write_rows(tmp_path / name, "z")
    assert texts_of(str(tmp_path)) == ["a"]


def test_what_could_have_been_meant_as_rows_and_is_not_read_is_named(tmp_path, said):
    write_rows(tmp_path / "elsewhere" / "x.jsonl", "z")
    folder = tmp_path / "rows"
    write_rows(folder / "a.jsonl", "a")
    for name in ("b.jsonl.zst", "c.xlsx", "d.jsonl.1", "part-2", "_e.jsonl"):
        (folder / name).write_text("words")
    (folder / "broken.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "f.jsonl").symlink_to(tmp_path / "elsewhere" / "x.jsonl")
    for name in ("README.md", "LICENSE", ".gitattributes", "load.py", "_SUCCESS", "dataset_info.json"):
        (folder / name).write_text("words")
    assert texts_of(str(folder)) == ["a", "z"]
    assert said.messages == [
        "warning: not read (an unknown suffix, a name that begins with _, or a link to no file): "
        "_e.jsonl, b.jsonl.zst, broken.jsonl, c.xlsx, d.jsonl.1, linked and 1 more"
    ]


def test_a_folder_without_rows_names_what_it_holds_instead(tmp_path, said):
    (tmp_path / "rows.xlsx").write_text("words")
    with pytest.raises(DataError, match="no data files in the folder"):
        texts_of(str(tmp_path))
    assert "rows.xlsx" in said.messages[0]


def test_text_files_beside_tables_are_left_out_and_named(tmp_path, said):
    write_rows(tmp_path / "rows.jsonl", "a")
    (tmp_path / "notes.txt").write_text("words\n")
    assert texts_of(str(tmp_path)) == ["a"]
    assert said.messages == ["warning: 1 .txt files beside tables are not read"]
    (tmp_path / "rows.jsonl").unlink()
    assert len(list(read_records(parse_spec(str(tmp_path))))) == 1


@pytest.mark.parametrize(
    "held_back",
    [
        "test.jsonl",
        "valid/rows.jsonl",
        "data/validation-00000-of-00001.jsonl",
        "x_dev.jsonl",
        "evaluation.jsonl",
    ],
)
def test_only_training_files_are_read_where_splits_are_named(tmp_path, said, held_back):
    write_rows(tmp_path / "train.jsonl", "a")
    write_rows(tmp_path / "latest.jsonl", "b")
    write_rows(tmp_path / held_back, "z")
    assert texts_of(str(tmp_path)) == ["b", "a"]
    assert said.messages == [f"warning: validation and test files are not trained on: {Path(held_back).name}"]


def test_a_folder_of_test_files_alone_is_read(tmp_path):
    write_rows(tmp_path / "test.jsonl", "a")
    assert texts_of(str(tmp_path)) == ["a"]


def test_the_same_name_in_two_formats_is_read_once(tmp_path, said):
    write_rows(tmp_path / "rows.jsonl", "a")
    (tmp_path / "rows.csv").write_text("text\na\n")
    (tmp_path / "more.csv").write_text("text\nb\n")
    assert texts_of(str(tmp_path)) == ["b", "a"]
    assert said.messages == ["warning: the same names in another format are not read: rows.csv"]


def test_subsets_are_folders_or_parts_of_names(tmp_path):
    write_rows(tmp_path / "main" / "train.jsonl", "a")
    write_rows(tmp_path / "extra" / "train.jsonl", "b")
    write_rows(tmp_path / "rows_zh.jsonl", "c")
    assert texts_of(f"{tmp_path}:main") == ["a"]
    assert texts_of(f"{tmp_path}:extra/main") == ["b", "a"]
    assert texts_of(f"{tmp_path}:zh") == ["c"]
    with pytest.raises(DataError, match="no subset 'zz'") as caught:
        texts_of(f"{tmp_path}:zz")
    assert caught.value.hint == "there are: extra, main, rows_zh"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "no data files in the folder"),
        (lambda path: None, "no such data file or folder"),
        (lambda path: (path.mkdir(), (path / "a.jsonl").write_text("")), "a.jsonl: the file is empty"),
    ],
)
def test_folders_without_rows_stop(tmp_path, make, message):
    make(tmp_path / "folder")
    with pytest.raises(DataError, match=message) as caught:
        texts_of(str(tmp_path / "folder") + "/")
    assert caught.value.hint


def test_a_quoted_pattern_is_told_to_stand_without_quotes(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(DataError, match="no such data file") as caught:
        texts_of(str(tmp_path / "*.jsonl"))
    assert caught.value.hint == (
        "check the path given to --dataset or --val_dataset; "
        "write a pattern without quotes: the shell puts the names of its files there"
    )


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="rows.jsonl is no file") as caught:
        texts_of(str(tmp_path / "rows.jsonl"))
    assert caught.value.hint == "write the rows to a file, and give that"


def test_a_file_that_may_not_be_read_stops(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    spec = parse_spec(str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="no such data file"):
        list(read_records(spec))


BLOSSOM = {"id": 1, "input": "2+2?", "output": "It is {4}.", "answer": "4", "dataset": "x"}


@pytest.mark.parametrize(
    "text", ["blossom-math-zh", "HF::Azure99/blossom-math-v2", "Azure99/blossom-math-v2"]
)
def test_a_named_dataset_comes_out_of_the_cache_under_its_name_and_its_id(hub_cache, monkeypatch, text):
    monkeypatch.setenv("USE_HF", "1")
    hub_cache("Azure99/blossom-math-v2", "blossom.json", [BLOSSOM, BLOSSOM | {"answer": None}])
    assert [path.name for path in files_of(parse_spec(text))] == ["blossom.json"]
    good, bad = read_records(parse_spec(text))
    assert good.row == {"query": "2+2?", "response": "It is {4}.\n\nAnswer: 4"}
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail, bad.origin.line) == ("schema", "column answer is missing or null", 2)
    assert count_records(parse_spec(text)) == 2


def test_the_subset_of_a_named_dataset_and_one_asked_for(hub_cache, monkeypatch):
    monkeypatch.setenv("USE_HF", "1")
    for name in ("main", "socratic"):
        hub_cache("openai/gsm8k", f"{name}/train-0.jsonl", [{"question": name, "answer": "a"}])
        hub_cache("openai/gsm8k", f"{name}/test-0.jsonl", [{"question": "test", "answer": "a"}])
    assert [row.row["question"] for row in read_records(parse_spec("gsm8k"))] == ["main"]
    assert [row.row["question"] for row in read_records(parse_spec("gsm8k:socratic"))] == ["socratic"]


def test_a_dataset_that_no_hub_has_stops_with_a_hint(hub_cache, monkeypatch):
    monkeypatch.setenv("USE_HF", "1")
    with pytest.raises(SwiftletError) as caught:
        list(read_records(parse_spec("HF::nobody/nothing")))
    assert caught.value.hint


def test_a_pattern_of_one_column_hands_over_its_value():
    record = Record(
        {"rounds": [{"role": "human"}], "x": 1}, next(read_records(parse_spec("demo-math-zh"))).origin
    )
    assert shape(record, {"messages": "{rounds}"}).row == {"messages": [{"role": "human"}]}
    assert shape(record, {}) is record


def test_generated_sets_need_no_files():
    spec = parse_spec("demo-math-zh#5")
    rows = list(read_records(spec))
    assert files_of(spec) == []
    assert len(rows) == 5
    assert all(
        set(row.row) == {"query", "response"} and "\n\nAnswer: " in row.row["response"] for row in rows
    )
    assert count_records(spec) == DATASETS["demo-math-zh"].num_rows
    assert rows == list(read_records(spec))


def test_the_identity_set_is_told_name_and_maker():
    rows = list(read_records(parse_spec("self-cognition:Birch/Lakeside Lab")))
    assert len(rows) == count_records(parse_spec("self-cognition:Birch/Lakeside Lab"))
    assert any("Birch" in str(row.row) for row in rows) and any(
        "Lakeside Lab" in str(row.row) for row in rows
    )
