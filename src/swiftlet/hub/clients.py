"""The two hubs: where their clients keep files, how they fetch them, and what a person types to do it by hand.

Imports the clients inside functions: they are slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swiftlet.hub.cache import hf_cache, hf_place, hf_snapshot, lacks_code, ms_cache, ms_place, ms_snapshot
from swiftlet.hub.connection import CONNECT_TIMEOUT_S, hf_endpoint, ms_endpoint
from swiftlet.hub.refusals import Asked, of_hugging_face, of_modelscope
from swiftlet.hub.unfinished import find_marker, marker_of


@dataclass(frozen=True)
class Hub:
    """One hub: its name, its cache, how a cached copy is found and how a missing one is fetched.

    Attributes:
        place: where a copy that is put into the cache by hand is found.
        token: what to type to be known there.
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
    token: str
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

    def find_whole(
        self, kind: str, repo: str, revision: str | None, *, with_code: bool = False
    ) -> Path | None:
        """Return the cached copy, but none whose download is under way or was cut short.

        Args:
            with_code: nor one that lacks Python files which its config.json names.
        """
        found = self.find(kind, repo, revision)
        if found is None or find_marker(self.marker(kind, repo, revision), found):
            return None
        return None if with_code and lacks_code(found) else found

    def page(self, kind: str, repo: str) -> str:
        """Return the address of a repository's page."""
        folder = "" if kind == "model" and self is HUGGING_FACE else f"{kind}s/"
        return f"{self.endpoint()}/{folder}{repo}"

    def asked(self, kind: str, repo: str, revision: str | None) -> Asked:
        """Return what messages say of a repository that is asked for."""
        return Asked(self.name, kind, revision, self.page(kind, repo), self.token)

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
    from requests import RequestException

    download = snapshot_download if kind == "model" else dataset_snapshot_download
    try:
        path = download(
            repo,
            revision=revision,
            cache_dir=str(ms_cache()),
            # else the client writes a revision over the files of a copy in an older layout, which says of none
            local_dir=str(ms_place(kind, repo, revision)) if revision else None,
            allow_patterns=allow,
            ignore_patterns=ignore or None,
            endpoint=ms_endpoint(),
        )
    except (HubError, RequestException) as error:
        raise of_modelscope(error, MODELSCOPE.asked(kind, repo, revision)) from error
    return str(path)


def _fetch_hf(kind: str, repo: str, revision: str | None, allow: list[str], ignore: list[str]) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    try:
        # before version 1.22 the client takes what is cached for all there is where the hub lists no files
        HfApi(endpoint=hf_endpoint()).repo_info(repo, repo_type=kind, revision=revision)
        path = snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            cache_dir=hf_cache(),
            allow_patterns=allow,
            ignore_patterns=ignore or None,
            etag_timeout=CONNECT_TIMEOUT_S,
            endpoint=hf_endpoint(),
        )
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise of_hugging_face(error, HUGGING_FACE.asked(kind, repo, revision)) from error
    return str(path)


MODELSCOPE = Hub(
    name="ModelScope",
    cache=ms_cache,
    find=ms_snapshot,
    place=ms_place,
    fetch=_fetch_ms,
    endpoint=lambda: ms_endpoint() or "https://www.modelscope.cn",
    token="export MODELSCOPE_API_TOKEN=TOKEN",
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
    endpoint=hf_endpoint,
    token="export HF_TOKEN=TOKEN",
    command="hf",
    option="--local-dir",
    locks=".locks",
    branch="main",
)
