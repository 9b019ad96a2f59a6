"""Where files that are kept between runs lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CACHE_VARIABLE = "SWIFTLET_CACHE"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where tokenised data and measurements of this machine are kept."""
    told = environ.get(CACHE_VARIABLE)
    if told:
        return Path(told).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swiftlet"
