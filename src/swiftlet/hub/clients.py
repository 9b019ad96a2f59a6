"""The two hubs: where their clients keep files, how they fetch them, and what a person types to do it by hand.

Imports the clients inside functions: they are slow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swiftlet.hub.cache import hf_cache, hf_place, hf_snapshot, ms_cache, ms_place, ms_snapshot
from swiftlet.hub.unfinished import find_marker, marker_of

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Hub:
    """One hub: its name, its cache, how a cached copy is found and how a missing one is fetched.

    Attributes:
        place: where a copy that is put into the cache by hand is found.
        option: the client's option for the folder that it downloads to.
        locks: the folder of the cache in which the client keeps its locks.
        branch: what the client takes where no revision is given.
    """

    name: str
    cache: Callable[[], Path]
    find: Callable[[str, str, str | None], Path | None]
    place: Callable[[str, str, str | None], Path]
    fetch: Callable[[str, str, str | None, list[str], list[str]], str]
    endpoint: Callable[[], str]
    command: str
    option: str
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
        """Return what to type on a machine with a connection; it makes a folder of the repository's name."""
        words = [
            self.command,
            "download",
            *(["--dataset"] if kind == "dataset" and self is MODELSCOPE else []),
            repo,
        ]
        if kind == "dataset" and self is HUGGING_FACE:
            words += ["--repo-type", "dataset"]
        words += ["--revision", revision] if revision else []
        return " ".join([*words, self.option, repo.rpartition("/")[2]])


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
    name="ModelScope",
    cache=ms_cache,
    find=ms_snapshot,
    place=ms_place,
    fetch=_fetch_ms,
    endpoint=_ms_endpoint,
    command="modelscope",
    option="--local_dir",
    locks=".lock",
    branch="master",
)
HUGGING_FACE = Hub(
    name="Hugging Face",
    cache=hf_cache,
    find=hf_snapshot,
    place=hf_place,
    fetch=_fetch_hf,
    endpoint=_hf_endpoint,
    command="hf",
    option="--local-dir",
    locks=".locks",
    branch="main",
)
