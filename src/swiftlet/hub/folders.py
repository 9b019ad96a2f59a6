"""Names to folders: a model or dataset of ModelScope or Hugging Face, from the local cache or by download.

The cache is looked at first, laid out as the clients of both hubs lay it out, and a complete copy is used without
any connection. Only what is missing is downloaded, by the hub's own client, and never a file that holds code; a
download of ours that was cut short leaves a marker (`unfinished.py`), and what has one is downloaded on.
ModelScope is the default; USE_HF=1 chooses Hugging Face.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from swiftlet import log
from swiftlet.config.filenames import COMPRESSED, SUFFIXES
from swiftlet.errors import SwiftletError, first_line
from swiftlet.hub.clients import HUGGING_FACE, MODELSCOPE, Hub
from swiftlet.hub.connection import is_on, unreachable
from swiftlet.hub.refusals import Refusal
from swiftlet.hub.unfinished import held

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
CODE_FILES = ["*.py"]
DATA_FILES = [*(f"*{suffix}{packed}" for suffix in SUFFIXES for packed in ("", *COMPRESSED)), "README.md"]
LEFT_OUT = ["original/*", "onnx/*", "openvino/*", "coreml/*", "metal/*", "consolidated*.safetensors"]


class Wanted(NamedTuple):
    """A repository that a run needs: "model" or "dataset", and its id on each hub that has it."""

    kind: str
    ms_id: str | None
    hf_id: str | None
    revision: str | None = None


class Problem(NamedTuple):
    """Why a repository cannot be had, and what to type, None where a connection is what lacks."""

    reason: str
    hint: str | None = None


def model_folder(
    ms_id: str | None, hf_id: str | None, *, revision: str | None = None, trust_remote_code: bool = False
) -> Path:
    """Return the local folder of a model, downloading it when no complete copy is cached.

    Args:
        trust_remote_code: also fetch Python files of the model.

    Raises:
        SwiftletError: neither the cache nor the hub has it, or the hub cannot be reached.
    """
    return _folder(Wanted("model", ms_id, hf_id, revision), with_code=trust_remote_code)


def dataset_folder(ms_id: str | None, hf_id: str | None) -> Path:
    """Return the local folder of a dataset's files, downloading it when no copy is cached.

    Raises:
        SwiftletError: neither the cache nor the hub has it, or the hub cannot be reached.
    """
    return _folder(Wanted("dataset", ms_id, hf_id))


def cached_folder(
    kind: str, ms_id: str | None, hf_id: str | None, *, revision: str | None = None
) -> Path | None:
    """Return the complete copy that a run would use without a connection, None where it would have to fetch one.

    Args:
        kind: "model" or "dataset".

    Raises:
        SwiftletError: no id is given.
    """
    hub, repo, _ = _choose(kind, ms_id, hf_id)
    return hub.find_whole(kind, repo, revision)


def missing(wanted: Iterable[Wanted]) -> list[SwiftletError]:
    """Return what to say of each repository that no cache has whole and whose hub cannot be reached.

    Who carries files to a machine without a connection hears of all of them before the first is used.
    """
    errors, problems = [], {}
    for kind, ms_id, hf_id, revision in wanted:
        hub, repo, other_id = _choose(kind, ms_id, hf_id)
        _check_id(repo, revision)
        if hub.find_whole(kind, repo, revision) is not None:
            continue
        if hub not in problems:
            problems[hub] = unreachable(hub.endpoint())
        if reason := problems[hub]:
            problem = Problem(reason)
            errors.append(_absent(hub, kind, repo, other_id=other_id, revision=revision, problem=problem))
    return errors


def _folder(wanted: Wanted, *, with_code: bool = False) -> Path:
    kind, ms_id, hf_id, revision = wanted
    hub, repo, other_id = _choose(kind, ms_id, hf_id)
    _check_id(repo, revision)
    if hub is not _hubs()[0]:
        log.info(f"{repo} is known on {hub.name} only, so it is taken from there")
    found = hub.find_whole(kind, repo, revision, with_code=with_code)
    if found is not None:
        log.info(f"{kind} {repo}: {found}")
        return found
    reason = unreachable(hub.endpoint())
    problem = Problem(reason) if reason else None
    if problem is None:
        log.info(f"downloading {kind} {repo} from {hub.name}")
        problem = _download(hub, kind, repo, revision, with_code)
        found = hub.find_whole(kind, repo, revision, with_code=with_code)
        if problem is None and found is not None:
            return found
        problem = problem or _unusable(hub, kind, repo)
    found = hub.find_whole(kind, repo, revision) if with_code else None
    if found is not None:  # loading it tells whether the code is needed
        log.warning(f"the Python code of {repo} is not in {found} and cannot be fetched: {problem.reason}")
        return found
    raise _absent(hub, kind, repo, other_id=other_id, revision=revision, problem=problem)


def _unusable(hub: Hub, kind: str, repo: str) -> Problem:
    """Return what is said of a repository whose files have been fetched and are not what is needed."""
    hint = "convert the weights to safetensors, and type --model_id_or_path FOLDER"
    if kind == "dataset":
        hint = "write its rows to jsonl, csv or parquet files, and type --dataset FOLDER"
    return Problem(
        f"its files there are no complete {kind} in a format that is read here",
        f"look at {hub.page(kind, repo)}; {hint}",
    )


def _check_id(repo: str, revision: str | None) -> None:
    for name in (repo, revision or "main"):
        if ".." in name or "\0" in name or name.startswith("/"):
            raise SwiftletError(f"{name!r} is no id of a hub", "write owner/name, or the path of a folder")


def _absent(
    hub: Hub, kind: str, repo: str, *, other_id: str | None, revision: str | None, problem: Problem
) -> SwiftletError:
    """Return what is said of a repository that is not here whole and cannot be downloaded."""
    advice = _advice(hub, kind, repo, other_id, revision, problem.hint)
    marker = hub.unfinished(kind, repo, revision)
    if marker is not None:
        again = (
            ""
            if problem.hint
            else "type the same command again with a connection: it goes on where it stopped; or "
        )
        return SwiftletError(
            f"the download of {kind} {repo} of {hub.name} to {hub.cache()} was cut short, and the rest cannot be "
            f"downloaded: {problem.reason}",
            f"{again}{advice}; or, to use the files there as they are: rm {shlex.quote(str(marker))}",
        )
    local = "is no folder here, " if other_id == repo else ""  # typed by its id, which looks like a path
    return SwiftletError(
        f"{kind} {repo} of {hub.name} {local}is not in {hub.cache()} and cannot be downloaded: {problem.reason}",
        advice,
    )


def _hubs() -> tuple[Hub, Hub]:
    """Return both hubs, the one that is asked first in front."""
    return (HUGGING_FACE, MODELSCOPE) if is_on("USE_HF") else (MODELSCOPE, HUGGING_FACE)


def _choose(kind: str, ms_id: str | None, hf_id: str | None) -> tuple[Hub, str, str | None]:
    """Return the hub to take a repository from, its id there, and that on the other hub."""
    ids = {MODELSCOPE: ms_id, HUGGING_FACE: hf_id}
    known = [(hub, repo) for hub in _hubs() if (repo := ids[hub])]
    if not known:
        raise SwiftletError(
            f"this {kind} has no id on either hub", "give an id, or the path of a local folder"
        )
    hub, repo = known[0]
    return hub, repo, ids[HUGGING_FACE if hub is MODELSCOPE else MODELSCOPE]


def _download(hub: Hub, kind: str, repo: str, revision: str | None, with_code: bool) -> Problem | None:
    """Fetch a repository into the cache, or wait for a process that does; return why that failed, or None."""
    try:
        with held(hub.marker(kind, repo, revision)) as marker:
            if hub.find_whole(kind, repo, revision, with_code=with_code) is not None:
                return None
            if (
                hub.find_whole(kind, repo, revision) is None
            ):  # else it is there but for its code, and stays usable
                marker.set(f"{kind} {repo} is being downloaded, or its download was cut short\n")
            problem = _fetch(hub, kind, repo, revision, with_code)
            if problem is None or hub.find(kind, repo, revision) is None:
                marker.clear()
    except OSError as error:
        return Problem(first_line(error))
    return problem


def _fetch(hub: Hub, kind: str, repo: str, revision: str | None, with_code: bool) -> Problem | None:
    allow = DATA_FILES if kind == "dataset" else MODEL_FILES + (CODE_FILES if with_code else [])
    try:
        hub.fetch(kind, repo, revision, allow, LEFT_OUT if kind == "model" else [])
    except ImportError as error:
        return Problem(str(error), f"pip install {error.name}")
    except Refusal as refusal:
        return Problem(str(refusal), refusal.hint)
    except (OSError, ValueError, RuntimeError) as error:
        return Problem(first_line(error))
    return None


def _advice(
    hub: Hub, kind: str, repo: str, other_id: str | None, revision: str | None, hint: str | None
) -> str:
    other = HUGGING_FACE if hub is MODELSCOPE else MODELSCOPE
    setting = "USE_HF=1" if hub is MODELSCOPE else "USE_HF=0"
    if other_id and other.find_whole(kind, other_id, revision) is not None:
        return f"the cache of {other.name} has it as {other_id}: put {setting} before the command"
    place = "here and use --model_id_or_path FOLDER"
    if kind == "dataset":  # as --dataset FOLDER it would lose what the table of datasets says of its columns
        place = f"here as {shlex.quote(str(hub.place(kind, repo, revision)))} and type the same command again"
    advice = hint or (
        f"on a machine with a connection: {hub.download_command(repo, kind, revision)}; "
        f"then copy the folder {place}"
    )
    return f"{advice}; or take it from {other.name}: {setting}" if other_id else advice
