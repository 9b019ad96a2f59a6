"""What a value of --dataset means."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swiftlet.data.datasets import DATASETS, by_id
from swiftlet.data.spec import DatasetSpec, absolute_text, parse_spec, parse_specs
from swiftlet.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "location", "subsets", "num_samples"),
    [
        ("blossom-math-zh", "named", "blossom-math-zh", (), None),
        ("blossom-math-zh#2000", "named", "blossom-math-zh", (), 2000),
        (
            "sharegpt-gpt4:V3_format/zh_38K_format#10",
            "named",
            "sharegpt-gpt4",
            ("V3_format", "zh_38K_format"),
            10,
        ),
        ("AI-ModelScope/blossom-math-v2", "hub", "AI-ModelScope/blossom-math-v2", (), None),
        ("HF::Azure99/blossom-math-v2", "hf", "Azure99/blossom-math-v2", (), None),
        ("ms::AI-ModelScope/blossom-math-v2#5", "ms", "AI-ModelScope/blossom-math-v2", (), 5),
        ("HF::openai/gsm8k:main#7", "hf", "openai/gsm8k", ("main",), 7),
        ("./nowhere.jsonl", "path", "./nowhere.jsonl", (), None),
        ("nowhere.csv.gz#3", "path", "nowhere.csv.gz", (), 3),
        (r"D:\data\rows.jsonl#3", "path", r"D:\data\rows.jsonl", (), 3),
        ("D:/rows.jsonl", "path", "D:/rows.jsonl", (), None),
        ("/data/some/folder:train", "path", "/data/some/folder", ("train",), None),
    ],
)
def test_the_forms_of_a_dataset(text, kind, location, subsets, num_samples):
    spec = parse_spec(text)
    assert (spec.text, spec.kind, spec.location) == (text, kind, location)
    assert (spec.subsets, spec.num_samples) == (subsets, num_samples)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://modelscope.cn/datasets/a/b-v2", "type a/b-v2, the id on the hub"),
        ("https://host/rows.jsonl#3", "download it, and give the file"),
        ("#2000", "write it behind the name, without a space: NAME#2000"),
        ("args.yaml", "for a file of arguments type --config args.yaml"),
    ],
)
def test_what_is_no_dataset_says_what_it_may_be(text, hint):
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert caught.value.hint == hint


def test_a_path_that_exists_wins_over_every_other_reading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows#2.jsonl", "rows#2", "odd#:#.jsonl", "a,b.jsonl", "alpaca-en", "HF::x"):
        (tmp_path / name).write_text("{}\n")
        assert parse_spec(name) == DatasetSpec(name, "path", name)
        assert parse_specs([name]) == (DatasetSpec(name, "path", name),)
    assert parse_spec("rows#2.jsonl#1") == DatasetSpec(
        "rows#2.jsonl#1", "path", "rows#2.jsonl", num_samples=1
    )
    assert parse_spec("odd#:#.jsonl#1").location == "odd#:#.jsonl"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert parse_spec("~/rows.jsonl#4").location == str(tmp_path / "rows.jsonl")


def test_commas_separate_and_a_file_with_a_comma_does_not(tmp_path):
    path = tmp_path / "a,b.jsonl"
    path.write_text("{}\n")
    specs = parse_specs(["alpaca-zh,alpaca-en#500", str(path), f"{path}#2"])
    assert [spec.location for spec in specs] == ["alpaca-zh", "alpaca-en", str(path), str(path)]
    assert [spec.num_samples for spec in specs] == [None, 500, None, 2]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("blossom-math-zz", "unknown dataset 'blossom-math-zz'", "did you mean blossom-math-zh?"),
        ("HG::a/b", "unknown hub 'HG'", "HF:: or MS::"),
        (
            "HF:a/b",
            "unknown dataset 'HF'",
            "two colons stand behind the name of a hub: HF::ORGANISATION/DATASET",
        ),
        ("HF::gsm8k", "not a hub id: 'gsm8k'", "HF::ORGANISATION/DATASET"),
        ("alpaca-zh#0", "#0 is no number of rows", "NAME#2000"),
        ("alpaca-zh#many", "unknown dataset", "a sample size is a number"),
        ("alpaca-zh:", "no subset after ':'", "NAME:subset1/subset2"),
        ("demo-math-zh:foo", "demo-math-zh has no subset foo: it has none", "type --dataset demo-math-zh"),
        (
            "self-cognition",
            "self-cognition is written self-cognition:NAME/MAKER",
            "type --dataset self-cognition:NAME/MAKER",
        ),
        ("", "not a dataset: ''", "a name, a hub id, a file or a folder"),
    ],
)
def test_what_is_no_dataset_is_said_with_a_hint(text, message, hint):
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


@given(st.text(alphabet=st.sampled_from("ab/:#,.~0129 \0\\é\ud83d\n") | st.characters(), max_size=40))
@example("#" * 10)
@example("a" * 5000)
def test_no_text_crashes_the_parser(text):
    try:
        spec = parse_spec(text)
    except UsageError as error:
        assert error.hint
    else:
        assert spec.kind in ("named", "ms", "hf", "hub", "path")
        assert spec.text == text


def test_the_table_of_datasets_is_whole():
    assert len(DATASETS) >= 20
    for name, row in DATASETS.items():
        assert row.help and row.source, name
        assert (row.generator is None) == bool(row.ms_id or row.hf_id), name
        if row.lengths is not None:
            assert row.lengths.min <= row.lengths.mean <= row.lengths.max, name
    assert by_id("azure99/blossom-math-v2") is DATASETS["blossom-math-zh"]
    assert by_id("nobody/nothing") is None


def test_a_path_means_the_same_from_another_folder_and_other_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    assert absolute_text("rows") == f"{tmp_path}/rows"
    assert absolute_text("rows:en/zh#20") == f"{tmp_path}/rows:en/zh#20"
    for text in ("demo-math-zh#20", "HF::openai/gsm8k:main#7", "self-cognition:Ada/ACME"):
        assert absolute_text(text) == text


def test_a_name_of_llama_factorys_registry_says_how_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    with pytest.raises(UsageError, match="unknown dataset 'mine'") as raised:
        parse_spec("mine#20")
    assert raised.value.hint == "for a name of data/dataset_info.json type --dataset data:mine"
