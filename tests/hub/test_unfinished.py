"""Downloads that are cut short: the next run downloads on or says so, and never uses a part."""

import hashlib
import importlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from swiftlet import hub
from swiftlet.errors import SwiftletError
from swiftlet.hub.cache import hf_cache, ms_cache

FILES = ["config.json", "model.safetensors", "a.jsonl", "b.jsonl", "c.jsonl"]


def commit_of(name):
    return hashlib.sha1(name.encode()).hexdigest()


class Client:
    """Stands in for the client of one hub: writes the files of a repository that are not there yet, one by one."""

    def __init__(self, name):
        self.name, self.calls, self.before = name, 0, lambda file: None

    def folder(self, repo, kind, revision=None):
        if self.name == "ms":
            home = ms_cache() / f"{kind}s" / repo.replace("/", "--")
            return home / "snapshots" / (revision or "master")
        home = hf_cache() / f"{kind}s--{repo.replace('/', '--')}"
        ref = home / "refs" / (revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit_of(ref.name))
        return home / "snapshots" / commit_of(ref.name)

    def download(self, repo, *, repo_type="model", revision=None, **rest):
        self.calls += 1
        folder = self.folder(repo, repo_type, revision)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            self.before(name)
            (folder / name).write_text("{}")
        return str(folder)

    def download_dataset(self, repo, **rest):
        return self.download(repo, repo_type="dataset", **rest)


@pytest.fixture(params=["ms", "hf"])
def client(request, monkeypatch, tmp_path):
    """Empty caches, hubs that can be reached, and a client that asks them nothing."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("MODELSCOPE_ENDPOINT", "HF_ENDPOINT"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("USE_HF", str(int(request.param == "hf")))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    made = Client(request.param)
    module = importlib.import_module("modelscope.hub.snapshot_download")
    monkeypatch.setattr(module, "snapshot_download", made.download)
    monkeypatch.setattr(module, "dataset_snapshot_download", made.download_dataset)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.download)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *args, **rest: None)
    with server:
        yield made


def fetch(kind, **options):
    return getattr(hub, f"{kind}_folder")("a/b", "a/b", **options)


def raise_at(name, error):
    def before(file):
        if file == name:
            raise error

    return before


def kill_in_the_middle(client, kind):
    """Download in a process of its own that is killed before the last file."""
    child = os.fork()
    if child == 0:
        client.before = lambda file: file == "c.jsonl" and os.kill(os.getpid(), signal.SIGKILL)
        fetch(kind)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def markers(tmp_path):
    return sorted(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_a_killed_download_goes_on_in_the_next_run(client, kind, tmp_path):
    kill_in_the_middle(client, kind)
    folder = client.folder("a/b", kind)
    assert (folder / "b.jsonl").exists() and not (folder / "c.jsonl").exists()
    assert hub.cached_folder(kind, "a/b", "a/b") is None
    assert fetch(kind) == folder and (folder / "c.jsonl").exists()
    assert not markers(tmp_path)
    assert fetch(kind) == folder and client.calls == 1


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_without_a_connection_a_killed_download_is_named_with_what_to_type(
    client, kind, tmp_path, monkeypatch
):
    kill_in_the_middle(client, kind)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SwiftletError) as caught:
        fetch(kind)
    assert (
        f"the download of {kind} a/b of " in caught.value.message and "was cut short" in caught.value.message
    )
    assert "HF_HUB_OFFLINE" in caught.value.message and "the same command again" in caught.value.hint
    (marker,) = markers(tmp_path)
    assert caught.value.hint.endswith(f"rm {marker}")
    marker.unlink()
    assert fetch(kind) == client.folder("a/b", kind)


def test_a_model_that_lacks_its_weights_is_named_as_cut_short_too(client, monkeypatch):
    kill_in_the_middle(client, "model")
    (client.folder("a/b", "model") / "model.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SwiftletError, match="the download of model a/b of .* was cut short"):
        fetch("model")


@pytest.mark.parametrize("error", [OSError("reset by peer"), RuntimeError("no disk"), KeyboardInterrupt()])
def test_a_download_that_fails_in_the_middle_is_not_used(client, error):
    client.before = raise_at("c.jsonl", error)
    for _ in range(2):
        with pytest.raises((SwiftletError, KeyboardInterrupt)) as caught:
            fetch("dataset")
        if caught.type is SwiftletError:
            assert f"was cut short, and the rest cannot be downloaded: {error}" in caught.value.message
    client.before = lambda file: None
    assert (fetch("dataset") / "c.jsonl").exists()


def test_a_download_that_brought_nothing_leaves_no_marker(client, tmp_path):
    client.before = raise_at(FILES[0], OSError("no such repository"))
    with pytest.raises(SwiftletError, match="is not in .* cannot be downloaded: no such repository"):
        fetch("dataset")
    assert not markers(tmp_path)


def test_files_placed_by_hand_are_used_though_some_are_lacking(client):
    folder = client.folder("a/b", "dataset")
    folder.mkdir(parents=True)
    (folder / "b.jsonl").write_text("{}")
    assert fetch("dataset") == folder and client.calls == 0


def test_a_cut_download_of_one_revision_spoils_no_other(client, monkeypatch):
    whole = fetch("model")
    client.before = raise_at("c.jsonl", OSError("reset by peer"))
    with pytest.raises(SwiftletError, match="was cut short"):
        fetch("model", revision="v/2")
    assert fetch("model") == whole
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SwiftletError, match="was cut short"):
        fetch("model", revision="v/2")


def test_a_commit_is_unfinished_as_is_the_branch_that_names_it(client, monkeypatch):
    name = "master" if client.name == "ms" else commit_of("main")
    kill_in_the_middle(client, "model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SwiftletError, match="was cut short"):
        fetch("model", revision=name)


def test_two_at_once_download_once(client, tmp_path, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("swiftlet"), "propagate", True)
    caplog.set_level("INFO", logger="swiftlet")
    goes_on, has_begun, found = threading.Event(), threading.Event(), []

    def before(file):
        if file == "c.jsonl":
            has_begun.set()
            assert goes_on.wait(60)

    client.before = before
    both = [threading.Thread(target=lambda: found.append(fetch("dataset"))) for _ in range(2)]
    both[0].start()
    assert has_begun.wait(60)
    both[1].start()
    until = time.monotonic() + 60
    while "another process is downloading the same files" not in caplog.text and time.monotonic() < until:
        time.sleep(0.01)
    goes_on.set()
    for thread in both:
        thread.join(60)
    assert found == [client.folder("a/b", "dataset")] * 2 and client.calls == 1
    assert not markers(tmp_path)


def test_a_cache_that_takes_no_marker_is_used_as_it_is_and_nothing_is_downloaded_to_it(client):
    root = ms_cache() / ".lock" if client.name == "ms" else hf_cache() / ".locks"
    folder = client.folder("a/b", "dataset")
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_text("a file where the folder of locks would be")
    with pytest.raises(SwiftletError, match="cannot be downloaded: .*File exists"):
        fetch("dataset")
    assert client.calls == 0
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("{}")
    assert fetch("dataset") == folder


def test_a_file_system_without_locks_takes_the_marker_alone(client, tmp_path, monkeypatch):
    import errno

    def refuse(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    client.before = raise_at("c.jsonl", OSError("reset by peer"))
    with pytest.raises(SwiftletError, match="was cut short"):
        fetch("dataset")
    client.before = lambda file: None
    assert (fetch("dataset") / "c.jsonl").exists() and not markers(tmp_path)


def test_the_clients_find_nothing_strange_in_a_cache_with_a_marker(client, tmp_path):
    kill_in_the_middle(client, "dataset")
    assert markers(tmp_path)
    from huggingface_hub import scan_cache_dir
    from modelscope_hub._cache_manager import scan_cache

    if client.name == "hf":
        assert not scan_cache_dir(hf_cache()).warnings
    else:
        assert [repo.repo_id for repo in scan_cache(Path(ms_cache())).repos] == ["a/b"]


@pytest.mark.parametrize("client", ["hf"], indirect=True)
def test_an_older_client_never_passes_a_part_for_the_whole_where_the_hub_lists_nothing(client, monkeypatch):
    def refuse(*args, **rest):
        raise OSError("500 server error")

    kill_in_the_middle(client, "dataset")
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse)
    with pytest.raises(SwiftletError, match="was cut short, and the rest cannot be downloaded: 500 server"):
        fetch("dataset")
