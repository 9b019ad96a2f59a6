"""The card of a dataset: what the head of a folder's README.md says of its subsets and the splits of its files.

Source: "Manual Configuration" of Hugging Face's hub; ModelScope reads the same head. What is asked for and not in a
card, or a card that says nothing of files, leaves the choice to the files' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log

CARD = "README.md"
LARGEST_BYTES = 1 << 20
_HEAD = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_SIGNS = {"*": "[^/]*", "?": "[^/]", "**": ".*", "**/": "(?:.*/)?"}


class Subset(NamedTuple):
    """One configuration of a card: its name, whether it is the one taken unasked, and its splits' patterns of paths.

    An empty split says that the names of the files tell it.
    """

    name: str
    is_default: bool
    splits: Mapping[str, tuple[str, ...]]

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


def _subset(config: dict[str, Any]) -> Subset:
    name = str(config.get("config_name", "default"))
    is_default = name == "default" or config.get("default") is True
    home = config.get("data_dir")
    root = home.strip("/") + "/" if isinstance(home, str) else ""
    found = config.get("data_files", [{"split": "", "path": "**"}] if root else [])
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


def _expression(paths: tuple[str, ...]) -> re.Pattern[str]:
    """Return what matches the paths that any of the patterns means; only `**` goes into folders."""
    parts = (
        "".join(_SIGNS.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", path))
        for path in paths
    )
    return re.compile("|".join(parts))
