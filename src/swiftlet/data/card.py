"""The card of a dataset: what a file beside the rows says of the subsets and the splits of its files.

That is the head of README.md ("Manual Configuration" of Hugging Face's hub; ModelScope reads it as well), ModelScope's
older NAME.json, the dataset_dict.json of `save_to_disk`, or the dataset_info.json of LLaMA-Factory. What is asked for
and not in a card, or a card that says nothing of files, leaves the choice to the files' names.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.data.columns import ANSWERS, CHATS, QUESTIONS, TOOLS
from swiftlet.data.guesses import SYSTEMS
from swiftlet.data.roles import ROLES

CARD = "README.md"
HEAD, LARGEST_BYTES = 4096, 1 << 20
_HEAD = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_SIGNS = {"*": "[^/]*", "?": "[^/]", "**": ".*", "**/": "(?:.*/)?"}
_SIGN = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^]/]+\])")
STRUCTURE_KEYS = {"meta", "file", "args"}
# What LLaMA-Factory's registry has names for: our name of it, and the names that are understood as they are.
QUESTION_NAMES = {"prompt": "instruction", "query": "input"}
REGISTRY_NAMES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "response": ("response", ANSWERS),
    "history": ("history", ("history",)),
    "messages": ("messages", CHATS),
    "system": ("system", SYSTEMS),
    "tools": ("tools", TOOLS),
    "role_tag": ("role", ("role", "from")),
    "content_tag": ("content", ("content", "value")),
    **{
        f"{role}_tag": (ours, tuple(name for name, one in ROLES.items() if one == ours))
        for role, ours in (("user", "user"), ("assistant", "assistant"), ("observation", "tool"))
    },
}


class Subset(NamedTuple):
    """One configuration of a card: its name, whether it is the one taken unasked, and its splits' patterns of paths.

    An empty split says that the names of the files tell it. `columns` are values of --columns that the card asks for.
    """

    name: str
    is_default: bool
    splits: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...] = ()

    def files(self, folder: Path, files: list[Path]) -> dict[Path, str]:
        """Return those of the files that belong to it, each with its split."""
        patterns = {split: _expression(paths) for split, paths in self.splits.items()}
        found: dict[Path, str] = {}
        for file in files:
            path = file.relative_to(folder).as_posix()
            split = next((split for split, pattern in patterns.items() if pattern.fullmatch(path)), None)
            if split is not None:
                found[file] = split
        return found


def read_card(folder: Path) -> list[Subset]:
    """Return the subsets whose files a folder's card names, none where it has no card or that names none."""
    return _of_readme(folder) or _of_structure(folder) or _of_splits(folder) or _of_registry(folder)


def is_structure(path: Path) -> bool:
    """Return whether a file is ModelScope's NAME.json, which names the files of the rows and holds none."""
    return bool(_structure(path))


def _of_readme(folder: Path) -> list[Subset]:
    import yaml

    try:
        with (folder / CARD).open(encoding="utf-8") as file:
            head = _HEAD.match(file.read(LARGEST_BYTES))
    except (OSError, ValueError):  # most folders have none; no text is no card
        return []
    try:
        content = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError):
        log.warning(
            f"{folder / CARD}: its head is not YAML, so what it says of subsets and splits is not used"
        )
        return []
    configs = content.get("configs") if isinstance(content, dict) else None
    subsets = [_subset(config) for config in _as_list(configs) if isinstance(config, dict)]
    return [subset for subset in subsets if subset.splits]


def _of_structure(folder: Path) -> list[Subset]:
    """Return the subsets of ModelScope's NAME.json: {subset: {split: {"meta": path of the rows, "file": archive}}}."""
    for path in sorted(folder.glob("*.json")):
        if found := _structure(path):
            subsets = (
                Subset(name, name == "default", {split: (item["meta"],) for split, item in splits.items()})
                for name, splits in found.items()
            )
            return [subset for subset in subsets if any(all(paths) for paths in subset.splits.values())]
    return []


def _structure(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    found = _object(path, b'"meta"')
    items = [
        item
        for splits in found.values()
        for item in (splits.values() if isinstance(splits, dict) else [splits])
    ]
    is_one = all(
        isinstance(item, dict) and isinstance(item.get("meta"), str) and item.keys() <= STRUCTURE_KEYS
        for item in items
    )
    return found if items and is_one and all(isinstance(one, dict) for one in found.values()) else {}


def _of_splits(folder: Path) -> list[Subset]:
    """Return the splits of a `DatasetDict`, each a folder of its own."""
    names = _object(folder / "dataset_dict.json").get("splits")
    splits = {name: (f"{name}/**",) for name in _as_list(names) if isinstance(name, str)}
    return [Subset("default", True, splits)] if splits else []


def _of_registry(folder: Path) -> list[Subset]:
    """Return the datasets of LLaMA-Factory's registry that are in this folder, a file or a folder each."""
    subsets = []
    for name, entry in _object(folder / "dataset_info.json").items():
        path = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(path, str) and path and (folder / path).exists():
            told = [entry.get(key) for key in ("columns", "tags")]
            names = {key: name for one in told if isinstance(one, dict) for key, name in one.items()}
            subsets.append(Subset(name, False, {"train": (path, f"{path}/**")}, _columns(names)))
    return subsets


def _columns(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of --columns for a registry's names, without those that are understood as they are."""
    names = {key: name for key, name in told.items() if isinstance(name, str) and name}
    questions = {key: names[key] for key in QUESTION_NAMES if key in names}
    is_known = tuple(questions.values()) in (*QUESTIONS, ("instruction",))
    renamed = {} if is_known else {name: QUESTION_NAMES[key] for key, name in questions.items()}
    for key, (ours, known) in REGISTRY_NAMES.items():
        if key in names and names[key] not in known:
            renamed[names[key]] = ours
    return tuple(shlex.quote(f"{theirs}={ours}") for theirs, ours in renamed.items())


def _object(path: Path, sign: bytes = b"") -> dict[str, Any]:
    """Return the object that a small JSON file holds, an empty one where there is none or no `sign` in its head."""
    try:
        with path.open("rb") as file:
            data = file.read(HEAD)
            data += file.read(LARGEST_BYTES) if sign in data else b""
        content = json.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # most folders have none; rows are told of by their reader
        return {}
    return content if isinstance(content, dict) else {}


def _subset(config: dict[str, Any]) -> Subset:
    name = str(config.get("config_name", "default"))
    is_default = name == "default" or config.get("default") is True
    home = config.get("data_dir")
    root = home.strip("/") + "/" if isinstance(home, str) else ""
    found = config.get("data_files", [{"split": "", "path": "**"}] if root else [])
    if isinstance(found, dict) and "path" not in found:
        found = [{"split": split, "path": paths} for split, paths in found.items()]
    splits: dict[str, tuple[str, ...]] = {}
    for item in _as_list(found):
        split, paths = (item.get("split"), item.get("path")) if isinstance(item, dict) else ("train", item)
        texts = [path for path in _as_list(paths) if isinstance(path, str) and path]
        names = [f"{root}{path.removeprefix('./')}".removeprefix("./") for path in texts]
        if names:
            splits[str(split)] = (*splits.get(str(split), ()), *names)
    return Subset(name, is_default, splits)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _expression(paths: Iterable[str]) -> re.Pattern[str]:
    """Return what matches the paths that any of the patterns means; only `**` goes into folders."""
    return re.compile("|".join("".join(map(_part, _SIGN.split(path))) for path in paths if path))


def _part(part: str) -> str:
    if part.startswith("[") and _SIGN.fullmatch(part):
        inside = part[1:-1].replace("\\", r"\\")
        return f"[^{inside[1:]}]" if inside[0] == "!" else f"[{inside}]"
    return _SIGNS.get(part) or re.escape(part)
