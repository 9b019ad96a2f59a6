"""What earlier trials of fused operators found, in a file of the user's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from swiftlet.config.places import cache_folder
from swiftlet.files import write_whole
from swiftlet.log import warning

Trials = dict[
    str, tuple[float, float]
]  # the error that a trial found, and the most that is rounding, by its key


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value)


def read_trials(path: Path) -> Trials:
    """Return what earlier trials found; a file that cannot be read costs a trial, not the run."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = content.items() if isinstance(content, dict) else ()
    return {key: (value[0], value[1]) for key, value in pairs if _is_pair(value)}


def write_trials(path: Path, trials: Trials) -> None:
    """Write what is known, in one step; where that cannot be, a line of the log says so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(trials, indent=1))
    except OSError as error:
        warning(f"{path} cannot be written: {error.strerror}; fused operators are tried anew each time")


def default_memory() -> Path:
    """Return where the results of trials are kept."""
    return cache_folder(os.environ) / "operators.json"
