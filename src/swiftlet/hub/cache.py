"""Where the clients of both hubs keep their files, and which of the copies there are complete. Reads only.

Complete means for a model: config.json, and every shard of its weight index or at least one safetensors file (or
weights in another format, which are then refused with a reason of their own). For a dataset: one file of data.
Sources: huggingface_hub `_snapshot_download.py` and its guide "Understand caching"; modelscope_hub `_download.py`
and modelscope `hub/utils/utils.py` for the layouts that older versions of it wrote.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from swiftlet.config.filenames import SUFFIXES, unpacked_name
from swiftlet.config.places import expanded

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
# What ModelScope's client adds to the name of a file that it has not fetched to its end.
PART = re.compile(r"(\.incomplete|\.parallel_tmp|_\d+_\d+)$")
MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".tiktoken", ".txt")
CODE_CLASSES = ("AutoConfig", "AutoModelForCausalLM")  # of auto_map, the two that are run
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.ckpt")


def hf_cache() -> Path:
    """Return the cache folder of Hugging Face's client, from its environment variables."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return expanded(os.path.expandvars(os.environ[name]))
    home = os.environ.get("HF_HOME")
    if not home:
        home = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return expanded(os.path.expandvars(home)) / "hub"


def ms_cache() -> Path:
    """Return the cache folder of ModelScope's client, from its environment variable."""
    return expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")


def hf_snapshot(kind: str, repo: str, revision: str | None) -> Path | None:
    """Return the complete cached copy of a repository of Hugging Face, or None.

    Args:
        kind: "model" or "dataset".
        revision: branch, tag or commit; main when not given.
    """
    root = _hf_root(kind, repo)
    commit = _text(root / "refs" / (revision or "main"))
    only = [] if commit or revision else _folders(root / "snapshots")
    named = [root / "snapshots" / commit] if commit else only if len(only) == 1 else []
    placed = hf_place(kind, repo, revision)
    return next((folder for folder in (*named, placed) if is_complete(kind, folder)), None)


def hf_place(kind: str, repo: str, revision: str | None) -> Path:
    """Return where a copy of a repository of Hugging Face is found that somebody puts there by hand."""
    return _hf_root(kind, repo) / "snapshots" / (revision or "main")


def _hf_root(kind: str, repo: str) -> Path:
    return hf_cache() / f"{kind}s--{repo.replace('/', '--')}"


def ms_snapshot(kind: str, repo: str, revision: str | None) -> Path | None:
    """Return the complete cached copy of a repository of ModelScope, or None; the owner's case does not matter.

    Args:
        kind: "model" or "dataset".
        revision: branch, tag or commit; master when not given.
    """
    owner, _, name = repo.partition("/")
    for folder in _ms_places(kind, owner, name, revision):
        if is_complete(kind, folder):
            return folder
    return None


def ms_place(kind: str, repo: str, revision: str | None) -> Path:
    """Return where a copy of a repository of ModelScope is found that somebody puts there by hand."""
    return ms_cache() / f"{kind}s" / repo.replace("/", "--") / "snapshots" / (revision or "master")


def _ms_places(kind: str, owner: str, name: str, revision: str | None) -> Iterator[Path]:
    base, segment = ms_cache(), f"{kind}s"
    roots = [root / "snapshots" for root in _same_name(base / segment, f"{owner}--{name}")]
    for branch in (revision,) if revision else ("master", "main"):
        yield from (snapshots / branch for snapshots in roots)
    if revision:
        return  # the older layouts do not say which revision they hold
    for parent in (base / segment, base / "hub" / segment, base, base / "hub"):
        for owned in _same_name(parent, owner):
            yield from (owned / name.replace(".", "___"), owned / name)
    for snapshots in roots:  # last: another revision than the usual one may have been asked for once
        only = _folders(snapshots)
        yield from only if len(only) == 1 else []


def _same_name(parent: Path, name: str) -> list[Path]:
    """Return the folders of this name in `parent`, the exact one first, then those that differ in case."""
    same = [folder for folder in _folders(parent) if folder.name.lower() == name.lower()]
    return sorted(same, key=lambda folder: (folder.name != name, folder.name))


def is_complete(kind: str, folder: Path) -> bool:
    """Return whether a cached folder holds all that a model needs, or any file of data."""
    if not folder.is_dir():
        return False
    if kind == "dataset":
        paths = list(folder.rglob("*"))
        return any(_is_data(path, folder) for path in paths) and not _has_parts(paths, SUFFIXES)
    if not (folder / "config.json").is_file() or _has_parts(folder.iterdir(), MODEL_SUFFIXES):
        return False
    index = _text(folder / INDEX)
    if index is None:
        if any(path.is_file() for path in folder.glob("*.safetensors")):
            return not _is_cut_short(folder)
        return any(path.is_file() for other in OTHER_WEIGHTS for path in folder.glob(other))
    try:
        shards = set(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return True  # loading it says what is wrong with the index
    return all(
        isinstance(shard, str) and (folder / shard).is_file() for shard in shards if "\0" not in str(shard)
    )


def lacks_code(folder: Path) -> bool:
    """Return whether a model's config.json names Python files of its own that are not there.

    They are fetched only where they may be run, so a copy that is complete otherwise may come without.
    """
    try:
        references = json.loads(_text(folder / "config.json") or "{}").get("auto_map", {})
        names = [references.get(name) for name in CODE_CLASSES]
    except (ValueError, AttributeError):
        return False  # reading it says what is wrong
    modules = [name.partition(".")[0] for name in names if isinstance(name, str) and "--" not in name]
    return any(not (folder / f"{module}.py").is_file() for module in modules)


def _is_data(path: Path, folder: Path) -> bool:
    """Return whether a file holds rows; below a name that begins with a dot the clients keep what is not whole yet."""
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and unpacked_name(path.name).endswith(SUFFIXES) and path.is_file()


def _has_parts(paths: Iterable[Path], suffixes: tuple[str, ...]) -> bool:
    """Return whether some files are there in part only, as a download leaves them that was cut short."""
    for path in paths:
        whole = PART.sub("", path.name)
        is_needed = unpacked_name(whole).endswith(suffixes)
        if whole != path.name and is_needed and not path.with_name(whole).exists():
            return True
    return False


def _is_cut_short(folder: Path) -> bool:
    """Return whether shards are missing, by their own names, where no index tells (a download that was cut off)."""
    files = (path for path in folder.glob("*.safetensors") if path.is_file())
    found = [match for path in files if (match := SHARD.search(path.name))]
    return any(len(found) < int(match[1]) for match in found)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []
