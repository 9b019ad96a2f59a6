"""Caches of both hubs, laid out as their clients lay them out, and what is said when nothing is there."""

import json
import sys

import pytest

from swiftlet import hub
from swiftlet.errors import SwiftletError
from swiftlet.hub.cache import hf_cache, is_complete, ms_cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MS_ID, HF_ID = "qwen/Qwen1.5-7B-Chat", "Qwen/Qwen1.5-7B-Chat"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """Empty caches, and hubs at a closed port of this machine."""
    for name in ("USE_HF", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def make_model(folder, *, shards=0):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)] or ["model.safetensors"]
    for name in names:
        (folder / name).write_bytes(b"x")
    if shards:
        weight_map = {f"w{i}": name for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def make_hf(root, kind="model", repo=HF_ID, *, shards=0):
    """A cache with refs, blobs and a snapshot of links, as huggingface_hub writes it."""
    home = root / "hub" / f"{kind}s--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    real = make_model(home / "made", shards=shards)
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted(real.iterdir())):
        path.rename(home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    real.rmdir()
    return snapshot


MS_LAYOUTS = [
    "models/qwen--Qwen1.5-7B-Chat/snapshots/master",
    "models/qwen/Qwen1___5-7B-Chat",
    "hub/models/qwen/Qwen1___5-7B-Chat",
    "hub/qwen/Qwen1___5-7B-Chat",
    "qwen/Qwen1___5-7B-Chat",
]


@pytest.mark.parametrize("layout", MS_LAYOUTS)
def test_each_layout_of_modelscope_is_found_where_its_client_finds_it(layout, tmp_path):
    made = make_model(tmp_path / "ms" / layout)
    assert hub.model_folder(MS_ID, HF_ID) == made
    from modelscope.hub.snapshot_download import snapshot_download

    assert snapshot_download(MS_ID, cache_dir=ms_cache(), local_files_only=True) == str(made)


def test_a_snapshot_of_hugging_face_is_found_where_its_client_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("USE_HF", "1")
    snapshot = make_hf(tmp_path / "hf")
    assert hub.model_folder(MS_ID, HF_ID) == snapshot
    from huggingface_hub import snapshot_download

    assert snapshot_download(HF_ID, cache_dir=hf_cache(), local_files_only=True) == str(snapshot)


def test_a_revision_is_a_branch_or_a_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("USE_HF", "1")
    snapshot = make_hf(tmp_path / "hf")
    assert hub.model_folder(None, HF_ID, revision=COMMIT) == snapshot
    assert hub.model_folder(None, HF_ID, revision="main") == snapshot
    with pytest.raises(SwiftletError, match="cannot be downloaded") as caught:
        hub.model_folder(None, HF_ID, revision="other")
    assert f"hf download {HF_ID} --revision other" in caught.value.hint
    made = make_model(tmp_path / "ms" / "models" / "a--b" / "snapshots" / "v2")
    monkeypatch.delenv("USE_HF")
    assert hub.model_folder("a/b", None, revision="v2") == made
    assert hub.model_folder("a/b", None) == made


def test_the_owner_may_differ_in_case(tmp_path):
    made = make_model(tmp_path / "ms" / "models" / "Qwen--Qwen1.5-7B-Chat" / "snapshots" / "master")
    assert hub.model_folder(MS_ID, HF_ID) == made


def test_the_only_known_hub_is_used_and_said(tmp_path, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("swiftlet"), "propagate", True)
    snapshot = make_hf(tmp_path / "hf")
    with caplog.at_level("INFO", logger="swiftlet"):
        assert hub.model_folder(None, HF_ID) == snapshot
    assert f"{HF_ID} is known on Hugging Face only" in caplog.text


@pytest.mark.parametrize("gone", ["model-00002-of-00003.safetensors", "config.json"])
def test_a_copy_that_lacks_a_file_is_not_used(gone, tmp_path):
    made = make_model(tmp_path / "ms" / MS_LAYOUTS[0], shards=3)
    assert hub.model_folder(MS_ID, None) == made
    (made / gone).unlink()
    with pytest.raises(SwiftletError, match="cannot be downloaded"):
        hub.model_folder(MS_ID, None)


def test_shards_without_their_index_are_counted_by_their_names(tmp_path):
    made = make_model(tmp_path / "m", shards=2)
    (made / "model.safetensors.index.json").unlink()
    assert is_complete("model", made)
    (made / "model-00001-of-00002.safetensors").unlink()
    assert not is_complete("model", made)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00002.safetensors", "model.bin"])
def test_a_link_to_no_file_and_a_folder_are_no_weights(name, tmp_path):
    folder = make_model(tmp_path / "m", shards=2 if "-" in name else 0)
    for path in (folder / "model.safetensors.index.json", folder / "model.safetensors", folder / name):
        path.unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/gone")
    assert not is_complete("model", folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert not is_complete("model", folder)


def test_what_a_client_has_not_fetched_to_its_end_is_no_dataset(tmp_path):
    part = tmp_path / "._____temp" / "rows.jsonl"
    part.parent.mkdir()
    part.write_text("{}")
    assert not is_complete("dataset", tmp_path)
    part.rename(tmp_path / "rows.jsonl")
    assert is_complete("dataset", tmp_path)


@pytest.mark.parametrize("part", ["b.jsonl.incomplete", "b.parquet_0_167772159", "b.csv.gz.parallel_tmp"])
def test_a_file_that_modelscopes_client_has_in_part_makes_a_dataset_incomplete(part, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    assert is_complete("dataset", tmp_path)
    (tmp_path / part).write_text("{")
    assert not is_complete("dataset", tmp_path)
    whole = part.removesuffix(".incomplete").removesuffix(".parallel_tmp").removesuffix("_0_167772159")
    (tmp_path / whole).write_text("{}")  # what is left over of a file that is whole does no harm
    assert is_complete("dataset", tmp_path)


def test_a_tokenizer_that_is_there_in_part_makes_a_model_incomplete(tmp_path):
    made = make_model(tmp_path / "m")
    (made / "pytorch_model.bin.incomplete").write_text("")  # never needed
    assert is_complete("model", made)
    (made / "tokenizer.json.incomplete").write_text("{")
    assert not is_complete("model", made)


def test_an_absent_model_says_where_it_looked_and_what_to_type(tmp_path):
    with pytest.raises(SwiftletError) as caught:
        hub.model_folder(MS_ID, HF_ID)
    assert MS_ID in caught.value.message and "ModelScope" in caught.value.message
    assert (
        str(tmp_path / "ms") in caught.value.message and "127.0.0.1 cannot be reached" in caught.value.message
    )
    for part in (f"modelscope download {MS_ID}", "--model_id_or_path FOLDER", "USE_HF=1"):
        assert part in caught.value.hint


def test_the_other_hubs_copy_is_pointed_at(tmp_path):
    make_hf(tmp_path / "hf")
    with pytest.raises(SwiftletError) as caught:
        hub.model_folder(MS_ID, HF_ID)
    assert f"the cache of Hugging Face has it as {HF_ID}: put USE_HF=1" in caught.value.hint


def test_an_offline_setting_is_obeyed(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SwiftletError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids"):
        hub.model_folder(MS_ID, HF_ID)


def test_no_id_and_ids_that_lead_elsewhere_are_refused():
    with pytest.raises(SwiftletError, match="no id on either hub"):
        hub.model_folder(None, None)
    for wrong in ("../up", "a/../../b", "/abs/olute", "a/b\0c"):
        with pytest.raises(SwiftletError, match="is no id of a hub"):
            hub.model_folder(wrong, None)


def test_datasets_are_found_in_both_caches(tmp_path, monkeypatch):
    ours = tmp_path / "ms" / "datasets" / "AI-ModelScope--blossom-math-v2" / "snapshots" / "master"
    ours.mkdir(parents=True)
    (ours / "README.md").write_text("no data yet")
    with pytest.raises(SwiftletError, match="dataset AI-ModelScope/blossom-math-v2") as caught:
        hub.dataset_folder("AI-ModelScope/blossom-math-v2", None)
    assert "modelscope download --dataset AI-ModelScope/blossom-math-v2" in caught.value.hint
    assert f"--local_dir blossom-math-v2; then copy the folder here as {ours} and type" in caught.value.hint
    (ours / "train.jsonl").write_text("{}")
    assert hub.dataset_folder("AI-ModelScope/blossom-math-v2", None) == ours
    monkeypatch.setenv("USE_HF", "1")
    with pytest.raises(SwiftletError) as caught:
        hub.dataset_folder(None, "Azure99/blossom-math-v2")
    assert "hf download Azure99/blossom-math-v2 --repo-type dataset --local-dir blossom" in caught.value.hint
    placed = tmp_path / "hf" / "hub" / "datasets--Azure99--blossom-math-v2" / "snapshots" / "main"
    assert f"then copy the folder here as {placed} and type the same command again" in caught.value.hint
    (placed.parents[1] / "refs").mkdir(parents=True)
    (placed.parents[1] / "refs" / "main").write_text(COMMIT)  # of a download that brought no file
    (placed.parent / COMMIT).mkdir(parents=True)
    placed.mkdir()
    (placed / "train.jsonl").write_text("{}")
    assert hub.dataset_folder(None, "Azure99/blossom-math-v2") == placed


def test_all_that_is_out_of_reach_is_said_at_once(tmp_path):
    make_model(tmp_path / "ms" / MS_LAYOUTS[0])
    wanted = [
        hub.Wanted("model", MS_ID, HF_ID),
        hub.Wanted("model", "a/b", "a/b"),
        hub.Wanted("dataset", "c/d", None),
    ]
    model, data = hub.missing(wanted)
    assert "model a/b of ModelScope is no folder here, is not in" in model.message
    assert "dataset c/d of ModelScope is not in" in data.message
    assert hub.missing(wanted[:1]) == []


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "train.ndjson", "data-00000-of-00001.arrow"])
def test_every_file_that_a_reader_knows_is_fetched_and_makes_a_dataset(name, tmp_path):
    from fnmatch import fnmatch

    from swiftlet.hub.folders import DATA_FILES

    ours = tmp_path / "ms" / "datasets" / "a--b" / "snapshots" / "master"
    ours.mkdir(parents=True)
    (ours / name).write_text("{}")
    assert hub.dataset_folder("a/b", None) == ours
    assert any(fnmatch(name, pattern) for pattern in DATA_FILES)


def test_what_is_at_hand_is_what_a_run_would_take(tmp_path, monkeypatch):
    snapshot = make_hf(tmp_path / "hf")
    assert hub.cached_folder("model", MS_ID, HF_ID) is None
    assert hub.cached_folder("model", None, HF_ID) == snapshot
    monkeypatch.setenv("USE_HF", "1")
    assert hub.cached_folder("model", MS_ID, HF_ID) == snapshot
    assert hub.cached_folder("model", MS_ID, None) is None


def test_cache_folders_follow_the_clients_variables(tmp_path, monkeypatch):
    assert hf_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "direct"))
    assert hf_cache() == tmp_path / "direct"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hf_cache() == tmp_path / "xdg" / "huggingface" / "hub"
    monkeypatch.delenv("MODELSCOPE_CACHE")
    assert ms_cache().parts[-2:] == (".cache", "modelscope")


def test_the_clients_are_not_imported_for_a_cached_copy(tmp_path):
    import subprocess

    make_model(tmp_path / "ms" / MS_LAYOUTS[0])
    code = f"""import sys
from swiftlet import hub
hub.model_folder({MS_ID!r}, None)
assert not {{"modelscope", "huggingface_hub", "torch", "requests"}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
