"""What earlier trials of fused operators found, in a file of the user's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from swiftlet.config.places import cache_folder
from swiftlet.files import write_whole
from swiftlet.log import warning


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value)


class Memory:
    """What earlier trials found, in one file; a file that cannot be read or written costs a trial, not the run."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, tuple[float, float]] = {}
        if path is not None and path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                content = {}
            if isinstance(content, dict):
                self.known = {key: (value[0], value[1]) for key, value in content.items() if _is_pair(value)}

    def save(self) -> None:
        """Write what is known, in one step."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(self.known, indent=1))
        except OSError as error:
            warning(
                f"{self.path} cannot be written: {error.strerror}; fused operators are tried anew each time"
            )


def default_memory() -> Path:
    """Return where the results of trials are kept."""
    return cache_folder(os.environ) / "operators.json"
