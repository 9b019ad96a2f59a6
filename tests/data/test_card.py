"""Folders whose README.md names subsets and splits, as both hubs read it, and sets of files that are not whole."""

import json

import pytest

from swiftlet.data.card import read_card
from swiftlet.data.folders import choose_files
from swiftlet.errors import DataError


@pytest.fixture
def said(monkeypatch):
    messages = []
    monkeypatch.setattr("swiftlet.log.warning", messages.append)
    return messages


def folder_of(folder, names, configs):
    """A folder with these files and a card."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\n# Rows\n")
    return folder


def chosen(folder, *subsets, split=None):
    return [file.relative_to(folder).as_posix() for file in choose_files(folder, subsets, split)]


def splits(**paths):
    return [{"split": split, "path": path} for split, path in paths.items()]


def test_the_card_says_the_split_where_the_names_do_not(tmp_path, said):
    files = {"train": ["a.jsonl", "b.jsonl"], "test": "c.jsonl"}
    config = {"config_name": "default", "data_files": splits(**files)}
    folder = folder_of(tmp_path, ["a.jsonl", "b.jsonl", "c.jsonl", "draft.jsonl"], [config])
    assert chosen(folder) == ["a.jsonl", "b.jsonl"]
    assert said == [
        "not in the subset default of README.md: draft.jsonl",
        "validation and test files are not trained on: c.jsonl",
    ]
    assert chosen(folder, split="test") == chosen(folder, "test") == ["c.jsonl"]


def test_a_file_is_of_the_split_of_the_card_whatever_its_name(tmp_path):
    config = {"config_name": "default", "data_files": splits(train="eval/*", validation="train.jsonl")}
    assert chosen(folder_of(tmp_path, ["eval/a.jsonl", "train.jsonl"], [config])) == ["eval/a.jsonl"]


NAMES = [
    f"{subset}/{split}-0000{n}-of-00002.jsonl"
    for subset in ("all", "zh")
    for split in ("train", "test")
    for n in (0, 1)
]
TWO = [
    {"config_name": name, "data_files": splits(train=f"{name}/train-*", test=f"{name}/test-*")}
    for name in ("all", "zh")
]


def test_one_of_several_subsets_has_to_be_chosen(tmp_path):
    """Often one of them holds the rows of all others: read together, rows would be trained on twice."""
    folder = folder_of(tmp_path, NAMES, TWO)
    with pytest.raises(DataError, match="2 subsets and no default: all, zh") as caught:
        chosen(folder)
    assert caught.value.hint == "choose by a word behind the name, such as --dataset NAME:all"
    assert chosen(folder, "zh") == NAMES[4:6]
    assert chosen(folder, "all", "zh") == [*NAMES[:2], *NAMES[4:6]]
    assert chosen(folder, "zh", "train") == [*NAMES[4:6], *NAMES[:2]]  # no file twice


@pytest.mark.parametrize("mark", [{"default": True}, {"config_name": "default"}])
def test_the_default_subset_is_taken_unasked(mark, tmp_path, said):
    folder = folder_of(tmp_path, NAMES, [TWO[0], {**TWO[1], **mark}])
    assert chosen(folder) == NAMES[4:6]
    assert len(said) == 2


@pytest.mark.parametrize(
    "form", ["**", "zh/*.jsonl", "./zh/train-0000?-of-*", ["zh/train-*", "nothing*"], "**/train-*"]
)
def test_patterns_of_paths(form, tmp_path):
    folder = folder_of(tmp_path, NAMES[4:6], [{"config_name": "rows", "data_files": form}])
    assert chosen(folder) == NAMES[4:6]


@pytest.mark.parametrize(
    ("home", "files"), [("zh", NAMES[4:6]), ("./zh/", NAMES[4:6]), (".", [*NAMES[:2], *NAMES[4:6]])]
)
def test_a_folder_stands_for_its_files(home, files, tmp_path):
    assert chosen(folder_of(tmp_path, NAMES, [{"config_name": "zh", "data_dir": home}])) == files


def test_a_subset_whose_files_are_not_here_stops(tmp_path):
    folder = folder_of(tmp_path, NAMES[:4], TWO)
    assert chosen(folder, "all") == NAMES[:2]
    with pytest.raises(DataError, match="no file of subset 'zh' is here"):
        chosen(folder, "zh")


@pytest.mark.parametrize(
    "text",
    [
        "# Rows",
        "---\nlicense: mit\n---\n",
        "---\nconfigs: x\n---\n",
        "---\nconfigs:\n- a\n- config_name: b\n---\n",
        "\xff",
    ],
)
def test_a_card_that_names_no_files_leaves_the_choice_to_names(text, tmp_path):
    folder = folder_of(tmp_path, ["train.jsonl", "test.jsonl"], [])
    (folder / "README.md").write_text(text, "latin-1")
    assert read_card(folder) == []
    assert chosen(folder) == ["train.jsonl"]


def test_a_card_that_is_not_yaml_is_said(tmp_path, said):
    folder = folder_of(tmp_path, ["train.jsonl"], [])
    (folder / "README.md").write_text("---\nconfigs: [a\n---\n")
    assert chosen(folder) == ["train.jsonl"]
    assert "its head is not YAML" in said[0]


def test_missing_shards_are_said(tmp_path, said):
    folder = folder_of(tmp_path, ["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], [])
    assert len(chosen(folder)) == 2
    assert said == ["only 2 of 3 files are here of train-*-of-00003: rows are missing"]
