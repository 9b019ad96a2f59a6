"""Names to folders: a model or dataset of ModelScope or Hugging Face, from the local cache or by download.

The cache is looked at first, laid out as the clients of both hubs lay it out, and a complete copy is used without
any connection. Only what is missing is downloaded, by the hub's own client, and never a file that holds code; a
download of ours that was cut short leaves a marker (`unfinished.py`), and what has one is downloaded on.
ModelScope is the default; USE_HF=1 chooses Hugging Face. Imports the clients inside functions: they are slow.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from swiftlet import log
from swiftlet.config.filenames import COMPRESSED, SUFFIXES
from swiftlet.errors import SwiftletError, first_line
from swiftlet.hub.cache import hf_cache, hf_snapshot, ms_cache, ms_snapshot
from swiftlet.hub.unfinished import find_marker, held, marker_of

CONNECT_TIMEOUT_S = 5.0
TRUE = {"1", "true", "yes", "on"}
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
CODE_FILES = ["*.py"]
DATA_FILES = [*(f"*{suffix}{packed}" for suffix in SUFFIXES for packed in ("", *COMPRESSED)), "README.md"]
LEFT_OUT = ["original/*", "onnx/*", "openvino/*", "coreml/*", "metal/*", "consolidated*.safetensors"]


@dataclass(frozen=True)
class Hub:
    """One hub: its name, its cache, how a cached copy is found and how a missing one is fetched.

    Attributes:
        locks: the folder of the cache in which the client keeps its locks.
        branch: what the client takes where no revision is given.
    """

    name: str
    cache: Callable[[], Path]
    find: Callable[[str, str, str | None], Path | None]
    fetch: Callable[[str, str, str | None, list[str], list[str]], str]
    endpoint: Callable[[], str]
    command: str
    locks: str
    branch: str

    def marker(self, kind: str, repo: str, revision: str | None) -> Path:
        """Return where the marker of an unfinished download lies."""
        return marker_of(self.cache() / self.locks, kind, repo, revision or self.branch)

    def unfinished(self, kind: str, repo: str, revision: str | None) -> Path | None:
        """Return the marker by which what is cached of a repository is no more than a part."""
        return find_marker(self.marker(kind, repo, revision), self.find(kind, repo, revision))

    def find_whole(self, kind: str, repo: str, revision: str | None) -> Path | None:
        """Return the cached copy, but none whose download is under way or was cut short."""
        found = self.find(kind, repo, revision)
        return None if found and find_marker(self.marker(kind, repo, revision), found) else found

    def download_command(self, repo: str, kind: str, revision: str | None) -> str:
        """Return what to type on a machine with a connection."""
        words = [
            self.command,
            "download",
            *(["--dataset"] if kind == "dataset" and self is MODELSCOPE else []),
            repo,
        ]
        if kind == "dataset" and self is HUGGING_FACE:
            words += ["--repo-type", "dataset"]
        return " ".join([*words, *(["--revision", revision] if revision else [])])


def is_on(name: str) -> bool:
    """Return whether an environment variable is set to yes."""
    return os.environ.get(name, "").strip().lower() in TRUE


def model_folder(
    ms_id: str | None, hf_id: str | None, *, revision: str | None = None, trust_remote_code: bool = False
) -> Path:
    """Return the local folder of a model, downloading it when no complete copy is cached.

    Args:
        trust_remote_code: also fetch Python files of the model.

    Raises:
        SwiftletError: neither the cache nor the hub has it, or the hub cannot be reached.
    """
    patterns = MODEL_FILES + (CODE_FILES if trust_remote_code else [])
    return _folder("model", ms_id, hf_id, revision, patterns)


def dataset_folder(ms_id: str | None, hf_id: str | None) -> Path:
    """Return the local folder of a dataset's files, downloading it when no copy is cached.

    Raises:
        SwiftletError: neither the cache nor the hub has it, or the hub cannot be reached.
    """
    return _folder("dataset", ms_id, hf_id, None, DATA_FILES)


def cached_folder(
    kind: str, ms_id: str | None, hf_id: str | None, *, revision: str | None = None
) -> Path | None:
    """Return the complete copy that a run would use without a connection, None where it would have to fetch one.

    Args:
        kind: "model" or "dataset".

    Raises:
        SwiftletError: no id is given.
    """
    hub, repo = _choose(kind, ms_id, hf_id)
    return hub.find_whole(kind, repo, revision)


def _folder(
    kind: str, ms_id: str | None, hf_id: str | None, revision: str | None, patterns: list[str]
) -> Path:
    hub, repo = _choose(kind, ms_id, hf_id)
    for name in (repo, revision or "main"):
        if ".." in name or "\0" in name or name.startswith("/"):
            raise SwiftletError(f"{name!r} is no id of a hub", "write owner/name, or the path of a folder")
    if hub is not _hubs()[0]:
        log.info(f"{repo} is known on {hub.name} only, so it is taken from there")
    found = hub.find_whole(kind, repo, revision)
    if found is not None:
        log.info(f"{kind} {repo}: {found}")
        return found
    problem = _unreachable(hub)
    if problem is None:
        log.info(f"downloading {kind} {repo} from {hub.name}")
        problem = _download(hub, kind, repo, revision, patterns)
        found = hub.find_whole(kind, repo, revision)
        if problem is None and found is not None:
            return found
        problem = problem or f"its files there are no complete {kind} in a format that is read here"
    advice = _advice(hub, kind, repo, ms_id if hub is HUGGING_FACE else hf_id, revision)
    marker = hub.unfinished(kind, repo, revision)
    if marker is not None:
        raise SwiftletError(
            f"the download of {kind} {repo} of {hub.name} to {hub.cache()} was cut short, and the rest cannot be "
            f"downloaded: {problem}",
            f"type the same command again with a connection: it goes on where it stopped; or {advice}; "
            f"or, to use the files there as they are: rm {shlex.quote(str(marker))}",
        )
    raise SwiftletError(
        f"{kind} {repo} of {hub.name} is not in {hub.cache()} and cannot be downloaded: {problem}", advice
    )


def _hubs() -> tuple[Hub, Hub]:
    """Return both hubs, the one that is asked first in front."""
    return (HUGGING_FACE, MODELSCOPE) if is_on("USE_HF") else (MODELSCOPE, HUGGING_FACE)


def _choose(kind: str, ms_id: str | None, hf_id: str | None) -> tuple[Hub, str]:
    ids = {MODELSCOPE: ms_id, HUGGING_FACE: hf_id}
    known = [(hub, repo) for hub in _hubs() if (repo := ids[hub])]
    if not known:
        raise SwiftletError(
            f"this {kind} has no id on either hub", "give an id, or the path of a local folder"
        )
    return known[0]


def _unreachable(hub: Hub) -> str | None:
    """Return why the hub cannot be reached, in a few seconds at most; None when it can, or a proxy is in between."""
    if is_on("HF_HUB_OFFLINE") or is_on("TRANSFORMERS_OFFLINE"):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids connections"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    address = urlsplit(hub.endpoint())
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached ({error.strerror or error})"
    return None


def _download(hub: Hub, kind: str, repo: str, revision: str | None, patterns: list[str]) -> str | None:
    """Fetch a repository into the cache, or wait for a process that does; return why that failed, or None."""
    try:
        with held(hub.marker(kind, repo, revision)) as marker:
            if hub.find_whole(kind, repo, revision) is not None:
                return None
            marker.set(f"{kind} {repo} is being downloaded, or its download was cut short\n")
            problem = _fetch(hub, kind, repo, revision, patterns)
            if problem is None or hub.find(kind, repo, revision) is None:
                marker.clear()
    except OSError as error:
        return first_line(error)
    return problem


def _fetch(hub: Hub, kind: str, repo: str, revision: str | None, patterns: list[str]) -> str | None:
    try:
        hub.fetch(kind, repo, revision, patterns, LEFT_OUT if kind == "model" else [])
    except ImportError as error:
        return f"{error}; pip install {error.name}"
    except (OSError, ValueError, RuntimeError) as error:
        return first_line(error)
    return None


def _advice(hub: Hub, kind: str, repo: str, other_id: str | None, revision: str | None) -> str:
    other = HUGGING_FACE if hub is MODELSCOPE else MODELSCOPE
    setting = "USE_HF=1" if hub is MODELSCOPE else "USE_HF=0"
    if other_id and other.find_whole(kind, other_id, revision) is not None:
        return f"the cache of {other.name} has it as {other_id}: put {setting} before the command"
    flag = "--model_id_or_path FOLDER" if kind == "model" else "--dataset FOLDER"
    advice = (
        f"on a machine with a connection: {hub.download_command(repo, kind, revision)}; "
        f"then copy the folder here and use {flag}"
    )
    return f"{advice}; or take it from {other.name}: {setting}" if other_id else advice


def _fetch_ms(kind: str, repo: str, revision: str | None, allow: list[str], ignore: list[str]) -> str:
    from modelscope.hub.snapshot_download import dataset_snapshot_download, snapshot_download
    from modelscope_hub.errors import HubError

    download = snapshot_download if kind == "model" else dataset_snapshot_download
    try:
        path = download(
            repo,
            revision=revision,
            cache_dir=str(ms_cache()),
            allow_patterns=allow,
            ignore_patterns=ignore or None,
            endpoint=os.environ.get("MODELSCOPE_ENDPOINT") or None,
        )
    except HubError as error:
        raise OSError(str(error)) from error
    return str(path)


def _fetch_hf(kind: str, repo: str, revision: str | None, allow: list[str], ignore: list[str]) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        # before version 1.22 the client takes what is cached for all there is where the hub lists no files
        HfApi(endpoint=_hf_endpoint()).repo_info(repo, repo_type=kind, revision=revision)
        path = snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            cache_dir=hf_cache(),
            allow_patterns=allow,
            ignore_patterns=ignore or None,
            etag_timeout=CONNECT_TIMEOUT_S,
            endpoint=_hf_endpoint(),
        )
    except HTTPError as error:
        raise OSError(str(error)) from error
    return str(path)


def _ms_endpoint() -> str:
    return os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn"


def _hf_endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


MODELSCOPE = Hub(
    "ModelScope", ms_cache, ms_snapshot, _fetch_ms, _ms_endpoint, "modelscope", ".lock", "master"
)
HUGGING_FACE = Hub("Hugging Face", hf_cache, hf_snapshot, _fetch_hf, _hf_endpoint, "hf", ".locks", "main")
