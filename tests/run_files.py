"""What a run has left in its folder."""

from __future__ import annotations

import json
from pathlib import Path

from swiftlet.files import sha256


def lines(folder):
    """Return the entries of its log."""
    return [json.loads(line) for line in (Path(folder) / "logging.jsonl").read_text("utf-8").splitlines()]


def hashes(folder):
    """Return the sha256 of each file below a folder, by its place."""
    return {
        p.relative_to(folder).as_posix(): sha256(p) for p in sorted(Path(folder).rglob("*")) if p.is_file()
    }
