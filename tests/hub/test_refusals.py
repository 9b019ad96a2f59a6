"""Both real clients before a hub on this machine that refuses, fails, or hands out only what was asked for."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from swiftlet import hub
from swiftlet.errors import SwiftletError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
FILES = {
    "config.json": json.dumps({"auto_map": CODE}).encode(),
    "model.safetensors": b"new",
    "model.bin": b"never",
    "configuration_x.py": b"",
    "modeling_x.py": b"",
}


class Handler(BaseHTTPRequestHandler):
    """Answers as both hubs do; `server.faults` maps a part of a path to a status and headers."""

    def log_message(self, *args):
        pass

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(self.path)
        for part, (status, headers) in self.server.faults.items():
            if part in self.path:
                return self.answer(b'{"Code": 1, "Message": "no"}', status, **headers)
        address = urlsplit(self.path)
        query, path = parse_qs(address.query), unquote(address.path)
        name = query.get("FilePath", [path.rpartition("/")[2]])[0]
        if name in FILES:
            etag = f'"{hashlib.sha256(FILES[name]).hexdigest()}"'
            return self.answer(FILES[name], ETag=etag, X_Repo_Commit=COMMIT)
        sizes = [(name, len(content)) for name, content in FILES.items()]
        if path.endswith("/files"):
            files = [{"Path": name, "Type": "blob", "Size": size} for name, size in sizes]
            found = {"Code": 200, "Data": {"Files": files}}
        elif "/tree/" in path:
            found = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes]
        else:
            found = {"id": "o/m", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
        return self.answer(json.dumps(found).encode())

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "USE_HF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", False
    )  # as the variable was at its import
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.faults, server.asked = {}, []
        for name in ("MODELSCOPE_ENDPOINT", "HF_ENDPOINT"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def error(code):
    return {"X_Error_Code": code, "X_Error_Message": "no"}


HF_FAULTS = [
    ((401, error("RepoNotFound")), "the id is wrong, or the model is private", "check the id at {page}"),
    (
        (403, error("GatedRepo")),
        "only to those who have asked for access",
        "ask for it at {page}, then: export HF",
    ),
    (
        (404, error("RevisionNotFound")),
        "shows no revision 'v7' of it",
        "give a branch, tag or commit of {page}",
    ),
    (
        (403, {}),
        r"or not with this token \(403\)",
        "export HF_TOKEN=TOKEN; its account must be able to see {page}",
    ),
    (
        (429, {}),
        r"takes no more requests for now \(429\)",
        "wait some minutes and type the same command again",
    ),
    ((500, {}), "500 Internal Server Error", "type the same command again: what has been fetched is kept"),
]


@pytest.mark.parametrize(("fault", "reason", "hint"), HF_FAULTS)
def test_what_hugging_face_refuses_is_said_with_what_to_type(fault, reason, hint, server, monkeypatch):
    monkeypatch.setenv("USE_HF", "1")
    server.faults = {"/api/models/o/m": fault}
    with pytest.raises(SwiftletError, match=f"cannot be downloaded: .*{reason}") as caught:
        hub.model_folder("o/m", "o/m", revision="v7")
    assert hint.format(page=f"http://127.0.0.1:{server.server_port}/o/m") in caught.value.hint
    assert "on a machine with a connection" not in caught.value.hint
    assert caught.value.hint.endswith("; or take it from ModelScope: USE_HF=0")


MS_FAULTS = [
    (("/files", 404), None, "the id is wrong, or the model is private", "check the id at {page}"),
    (("/files", 404), "v7", "shows no revision 'v7' of it", "give a branch, tag or commit of {page}"),
    (
        ("/files", 403),
        None,
        r"or not with this token \(403\)",
        "API_TOKEN=TOKEN; its account must be able to see {page}",
    ),
    (
        ("=model.safe", 403),
        None,
        "1 files failed, the first is model.safetensors: .*403",
        "API_TOKEN=TOKEN; its",
    ),
]


@pytest.mark.parametrize(("fault", "revision", "reason", "hint"), MS_FAULTS)
def test_what_modelscope_refuses_is_said_with_what_to_type(fault, revision, reason, hint, server):
    server.faults = {fault[0]: (fault[1], {})}
    with pytest.raises(SwiftletError, match=f"cannot be downloaded: .*{reason}") as caught:
        hub.model_folder("o/m", None, revision=revision)
    page = f"http://127.0.0.1:{server.server_port}/models/o/m"
    assert hint.format(page=page) in caught.value.hint and "with a connection" not in caught.value.hint


def test_what_is_fetched_and_of_no_use_is_said_so(server, monkeypatch):
    monkeypatch.delitem(FILES, "model.safetensors")
    with pytest.raises(SwiftletError, match="no complete model in a format that is read here") as caught:
        hub.model_folder("o/m", None)
    assert "models/o/m; convert the weights to safetensors, and type --model_id_or_path" in caught.value.hint


def test_a_revision_is_not_written_over_a_copy_in_an_older_layout(server, tmp_path):
    old = tmp_path / "ms" / "hub" / "models" / "o" / "m"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    (old / "model.safetensors").write_bytes(b"old")
    folder = hub.model_folder("o/m", None, revision="v2")
    assert folder == tmp_path / "ms" / "models" / "o--m" / "snapshots" / "v2"
    assert (folder / "model.safetensors").read_bytes() == b"new"
    assert (old / "model.safetensors").read_bytes() == b"old"
    assert hub.model_folder("o/m", None) == old


@pytest.mark.parametrize("use_hf", ["0", "1"])
def test_code_that_was_not_fetched_is_fetched_once_it_is_trusted(use_hf, server, monkeypatch, tmp_path):
    monkeypatch.setenv("USE_HF", use_hf)
    folder = hub.model_folder("o/m", "o/m")
    assert not list(folder.glob("*.py")) and not (folder / "model.bin").exists()
    server.faults = {"o/m": (500, {})} if use_hf == "1" else {"/files": (404, {})}
    assert hub.model_folder("o/m", "o/m", trust_remote_code=True) == folder  # it may not be needed
    assert hub.cached_folder("model", "o/m", "o/m") == folder
    server.faults = {}
    assert hub.model_folder("o/m", "o/m", trust_remote_code=True) == folder
    assert (folder / "modeling_x.py").exists() and not list(tmp_path.rglob("*.unfinished"))
    server.asked.clear()
    assert hub.model_folder("o/m", "o/m", trust_remote_code=True) == folder
    assert server.asked == []
