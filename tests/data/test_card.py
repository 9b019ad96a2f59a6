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
        "not in the subset default of the card: draft.jsonl",
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
    with pytest.raises(DataError, match="no subset 'en'") as caught:
        chosen(folder, "en")
    assert caught.value.hint == "there are: all, zh, train, test"


@pytest.mark.parametrize("mark", [{"default": True}, {"config_name": "default"}])
def test_the_default_subset_is_taken_unasked(mark, tmp_path, said):
    folder = folder_of(tmp_path, NAMES, [TWO[0], {**TWO[1], **mark}])
    assert chosen(folder) == NAMES[4:6]
    assert len(said) == 2


@pytest.mark.parametrize(
    "form",
    [
        "**",
        "zh/*.jsonl",
        "./zh/train-0000?-of-*",
        ["zh/train-*", "nothing*"],
        "**/train-*",
        {"train": "zh/train-*"},
        "zh/train-[0-9][0-9]00[!2-9]-of-00002.jsonl",
    ],
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


def test_a_card_whose_files_are_not_here_is_said(tmp_path, said):
    folder = folder_of(tmp_path, ["train.jsonl", "test.jsonl"], [{"data_files": "{a,b}.jsonl"}])
    assert chosen(folder) == ["train.jsonl"]
    assert said[0] == "the card names no file that is here: the names of the files tell the splits"


def of_splits(folder, *names):
    paths = {name: f"data/{name}-*" for name in names}
    files = [f"data/{name}-00000-of-00001.jsonl" for name in names]
    return folder_of(folder, files, [{"config_name": "default", "data_files": splits(**paths)}])


def test_a_split_named_train_is_the_one_though_others_hold_parts_of_it_once_more(tmp_path, said):
    folder = of_splits(tmp_path, "train", "train_1M", "validation")
    assert chosen(folder) == ["data/train-00000-of-00001.jsonl"]
    assert said == [
        "other splits of the card than train are not read: train_1M-00000-of-00001.jsonl",
        "validation and test files are not trained on: validation-00000-of-00001.jsonl",
    ]
    assert chosen(folder, "train_1M") == ["data/train_1M-00000-of-00001.jsonl"]
    asked = ["data/validation-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl"]
    assert chosen(folder, "validation", "train") == asked  # whoever names a split gets it
    assert len(said) == 2


def test_several_splits_of_a_card_without_one_named_train_are_said(tmp_path, said):
    folder = of_splits(tmp_path, "train_gen", "train_sft", "test_sft")
    assert len(chosen(folder)) == 2
    assert said[1] == (
        "2 splits are trained on together (train_gen, train_sft): "
        "choose by a word behind the name, such as NAME:train_gen"
    )
    assert chosen(folder, "train_sft") == ["data/train_sft-00000-of-00001.jsonl"]
    assert len(said) == 2


def structure(folder, content, *names):
    (folder_of(folder, names, []) / "set.json").write_text(json.dumps(content), "utf-8")
    (folder / "README.md").unlink()
    return folder


def test_the_structure_of_modelscope_names_the_files_and_holds_no_rows(tmp_path, said):
    of_default = {
        "train": {"meta": "one.jsonl", "file": ""},
        "test": {"meta": "two.jsonl", "file": "", "args": {}},
    }
    folder = structure(tmp_path, {"default": of_default}, "one.jsonl", "two.jsonl")
    assert chosen(folder) == ["one.jsonl"]
    assert said == ["validation and test files are not trained on: two.jsonl"]
    assert chosen(folder, "test") == ["two.jsonl"]


def test_one_of_several_subsets_of_a_structure_has_to_be_chosen(tmp_path):
    content = {name: {"train": {"meta": f"{name}/train.jsonl"}} for name in ("zh", "en")}
    folder = structure(tmp_path, content, "zh/train.jsonl", "en/train.jsonl")
    with pytest.raises(DataError, match="2 subsets and no default: zh, en"):
        chosen(folder)
    assert chosen(folder, "en") == ["en/train.jsonl"]


@pytest.mark.parametrize(
    "content", [{"a": {"meta": "words"}}, {"a": {"b": {"meta": 1}}}, {"a": {"b": {"meta": "x", "text": "y"}}}]
)
def test_rows_that_speak_of_meta_are_no_structure(content, tmp_path):
    assert chosen(structure(tmp_path, content, "one.jsonl")) == ["one.jsonl", "set.json"]


def test_the_splits_of_a_saved_dataset_dict_are_its_folders_and_caches_of_map_no_rows(tmp_path, said):
    names = [f"{split}/data-00000-of-00001.arrow" for split in ("train", "extra", "dev")]
    folder = folder_of(
        tmp_path,
        [*names, "train/cache-0123456789abcdef.arrow", "train/cache-0123456789abcdef_00001_of_00002.arrow"],
        [],
    )
    assert chosen(folder) == ["extra/data-00000-of-00001.arrow", "train/data-00000-of-00001.arrow"]
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "extra", "dev"]}')
    assert chosen(folder) == ["train/data-00000-of-00001.arrow"]
    assert chosen(folder, "extra") == ["extra/data-00000-of-00001.arrow"]


def test_the_datasets_of_a_registry_are_subsets(tmp_path, said):
    """LLaMA-Factory keeps many datasets in one folder; all of them together are nobody's."""
    folder = folder_of(tmp_path, ["a.json", "many/1.jsonl", "many/2.jsonl", "mine.jsonl"], [])
    registry = {
        "first": {
            "file_name": "a.json",
            "columns": {"prompt": "q", "response": "a"},
            "tags": {"role_tag": "who"},
        },
        "second": {"file_name": "many"},
        "gone": {"file_name": "gone.json"},
        "far": {"hf_hub_url": "a/b"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(registry))
    with pytest.raises(DataError, match="2 subsets and no default: first, second"):
        chosen(folder)
    assert chosen(folder, "second") == ["many/1.jsonl", "many/2.jsonl"]
    assert chosen(folder, "mine") == ["mine.jsonl"]
    assert said == []
    assert chosen(folder, "first") == ["a.json"]
    assert said == [
        "the names that dataset_info.json gives to the columns of first are not read from there: they are given by "
        "--columns q=instruction a=response who=role"
    ]


@pytest.mark.parametrize(
    ("columns", "tags", "typed"),
    [
        ({"prompt": "instruction", "query": "input", "response": "output", "history": "history"}, {}, ()),
        ({"prompt": "question", "response": "answer"}, {}, ()),
        ({"messages": "conversations", "tools": "tools"}, {"role_tag": "from", "user_tag": "human"}, ()),
        ({"prompt": "output", "response": "input"}, {}, ("output=instruction", "input=response")),
        ({"prompt": "question", "query": "input"}, {}, ("question=instruction", "input=input")),
        (
            {"messages": "my chat", "images": "images", "ranking": True},
            {"content_tag": "text", "assistant_tag": "a", "observation_tag": "seen", "function_tag": "f"},
            ("'my chat=messages'", "text=content", "a=assistant", "seen=tool"),
        ),
    ],
)
def test_names_of_a_registry_that_are_not_ours_are_said_as_they_are_typed(
    tmp_path, said, columns, tags, typed
):
    folder = folder_of(tmp_path, ["a.json"], [])
    registry = {"first": {"file_name": "a.json", "columns": columns, "tags": tags}}
    (folder / "dataset_info.json").write_text(json.dumps(registry))
    assert chosen(folder, "first") == ["a.json"]
    assert [line.rpartition("--columns ")[2] for line in said] == ([" ".join(typed)] if typed else [])


def test_numbered_files_of_an_earlier_set_are_said(tmp_path, said):
    """Who saves or uploads rows again with another number of files leaves the old ones beside the new ones."""
    names = ["data-00000-of-00001", "data-00000-of-00002", "data-00001-of-00002", "x-00000-of-00001"]
    folder_of(tmp_path, [f"{name}.arrow" for name in names], [])
    assert len(chosen(tmp_path)) == 4
    assert said == [
        "sets of numbered files under one name: data-*-of-00001, data-*-of-00002: rows may be there twice"
    ]


def test_two_files_of_one_number_are_said(tmp_path, said):
    names = ["train-00000-of-00001-0f3a.parquet", "train-00000-of-00001-9bc2.parquet"]
    assert chosen(folder_of(tmp_path, names, [])) == names
    assert said == ["2 files are here of train-*-of-00001: rows may be there twice"]
