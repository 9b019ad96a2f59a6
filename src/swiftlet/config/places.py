"""Where files that are kept between runs lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from swiftlet.config.filenames import ARGS_FILE
from swiftlet.errors import UsageError

CACHE_VARIABLE = "SWIFTLET_CACHE"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where tokenised data and measurements of this machine are kept."""
    told = environ.get(CACHE_VARIABLE)
    if told:
        return expanded(told)
    return expanded(environ.get("XDG_CACHE_HOME") or "~/.cache") / "swiftlet"


def expanded(text: str) -> Path:
    """Return a path with the folder of a user in place of ~.

    Raises:
        UsageError: nothing says where that is, as for a number of a user that the machine has no entry for.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{text} cannot be found: this user has no home folder", "type HOME=FOLDER before the command"
        ) from error


def record_in(folder: str | None) -> Path | None:
    """Return the file with the arguments of the run whose folder, or checkpoint, this is; None where there is none."""
    try:
        record = expanded(folder or "") / ARGS_FILE
    except UsageError:  # ~ and a name that is no user's
        return None
    return record if folder and record.is_file() else None
