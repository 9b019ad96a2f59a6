"""The files beside a tokenizer: the folder's own, of the right kinds, or named with what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
from bpe import tokenizer_of

from swiftlet.data.tokenizer import load_tokenizer
from swiftlet.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    tokenizer_of(tmp_path / "model", "byte_level", None)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["vocab.txt", "chat_template.jinja", "chat_templates/tool.jinja"])
def test_a_link_to_a_file_elsewhere_is_refused_as_checkpoints_get_copies(folder, name):
    private = folder.parent / "private"
    private.write_text("of the user, not of the model", encoding="utf-8")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(private)
    with pytest.raises(UsageError, match=f"{name} is a link that leads out of its folder, to {private}"):
        load_tokenizer(folder)


def test_a_folder_of_templates_elsewhere_is_refused(folder):
    (folder.parent / "private").mkdir()
    (folder.parent / "private" / "a.jinja").write_text("x", encoding="utf-8")
    (folder / "chat_templates").symlink_to("../private")
    with pytest.raises(UsageError, match="leads out of its folder"):
        load_tokenizer(folder)


def test_links_within_the_folder_and_within_a_hubs_cache_are_fine(folder):
    (folder / "tokenizer.json").rename(folder / "real")
    (folder / "tokenizer.json").symlink_to("real")
    assert load_tokenizer(folder).vocab_size > 0
    cache = folder.parent / "models--a--b"
    snapshot = cache / "snapshots" / "main"
    shutil.copytree(folder, cache / "blobs")
    snapshot.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).symlink_to(Path("../../blobs", name))
    assert load_tokenizer(snapshot).vocab_size > 0
    linked = Path(folder.parent / "linked")
    linked.symlink_to(folder)  # the folder itself may be a link
    assert load_tokenizer(linked).vocab_size > 0


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer_config.json", {"added_tokens_decoder": ["<x>"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"one": {"content": "<x>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": None}}),
        ("tokenizer_config.json", {"chat_template": [{"a": 1}]}),
        ("tokenizer_config.json", {"chat_template": ["text"]}),
        ("added_tokens.json", {"<x>": None}),
    ],
)
def test_content_of_another_kind_names_the_file(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "tokenizer.json"])
def test_a_file_of_endless_depth_is_an_error(folder, name):
    (folder / name).write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(UsageError, match=f"{name} is not "):
        load_tokenizer(folder)


def test_a_tokenizer_newer_than_its_library_says_what_to_type(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8")) | {"pre_tokenizer": {"type": "OfNextYear"}}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match="is no tokenizer that is known here") as caught:
        load_tokenizer(folder)
    assert "pip install -U tokenizers" in caught.value.hint
