"""Which models have a name here, and what the user's --model_type and --model_id_or_path stand for. No torch.

The table is data (`families_qwen.py`, `families_other.py`). A local folder or a hub id needs no row: its config.json
and its tokenizer say all that is needed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from swiftlet import hub
from swiftlet.config.places import expanded
from swiftlet.errors import UsageError, pick
from swiftlet.models.families_other import other_rows
from swiftlet.models.families_qwen import qwen_rows
from swiftlet.models.family import Family

HERE = Path(__file__).parent
EMBEDDED = {"tiny-math-chat": HERE / "tiny_math_chat"}


class Choice(NamedTuple):
    """What the user asked for: a name for folders and logs, and a local folder or the ids on the hubs."""

    name: str
    family: Family | None
    folder: Path | None
    ms_id: str | None
    hf_id: str | None


FAMILIES: dict[str, Family] = {row.model_type: row for row in (*qwen_rows(), *other_rows())} | {
    name: Family(name, folder=folder) for name, folder in EMBEDDED.items()
}


def find_model(model_type: str | None, model_id_or_path: str | None) -> Choice:
    """Return what the two flags stand for; nothing is downloaded.

    A model_id_or_path is, in this order: a folder that exists, a name of the table, an id of a hub (MS:: or HF::
    before it for one hub only).

    Raises:
        UsageError: neither is given, the name is unknown, or the folder does not exist.
    """
    family = pick(FAMILIES, model_type, "--model_type") if model_type else None
    given = model_id_or_path
    if not given:
        if family is None:
            raise UsageError("no model is given", "use --model_type NAME or --model_id_or_path FOLDER")
        return Choice(family.model_type, family, family.folder, family.ms_id, family.hf_id)
    path = expanded(given)
    if path.is_dir():
        return Choice(model_type or path.resolve().name, family, path, None, None)
    if family is None and given in FAMILIES:
        return find_model(given, None)
    if path.exists() or _looks_like_path(given):
        reason = "is a file, not a folder" if path.exists() else "does not exist"
        ids = [repo for row in FAMILIES.values() for repo in (row.hf_id, row.ms_id) if repo]
        same = [repo for repo in ids if repo.lower().rpartition("/")[2] == given.lower()]
        hint = "give the folder that holds config.json"
        if same:
            hint = f"did you mean {same[0]}?"
        elif not path.exists() and re.fullmatch(r"\w[\w.-]*", given):
            hint += f", or a hub id with its owner: OWNER/{given}"
        raise UsageError(f"--model_id_or_path {given} {reason}", hint)
    return _by_id(given, family)


def _looks_like_path(given: str) -> bool:
    return given.startswith((".", "/", "~")) or "\\" in given or given.count("/") != 1


def _by_id(given: str, family: Family | None) -> Choice:
    prefix, separator, repo = given.rpartition("::")
    if separator and prefix.upper() not in ("MS", "HF"):
        raise UsageError(f"unknown hub {prefix!r} in {given}", "write MS::owner/name or HF::owner/name")
    known = family or next((f for f in FAMILIES.values() if repo.lower() in _ids(f)), None)
    name = known.model_type if known else repo.rpartition("/")[2]
    ms_id = hf_id = repo
    if known is not None and repo.lower() in _ids(known):
        ms_id, hf_id = known.ms_id or repo, known.hf_id or repo
    only = prefix.upper()
    return Choice(name, known, None, None if only == "HF" else ms_id, None if only == "MS" else hf_id)


def _ids(family: Family) -> set[str]:
    return {repo.lower() for repo in (family.ms_id, family.hf_id) if repo}


def fetch(choice: Choice, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return the local folder of a choice, from the package, the disk, a cache or a hub.

    Raises:
        SwiftletError: it is nowhere to be had.
    """
    if choice.folder is not None:
        return choice.folder
    return hub.model_folder(
        choice.ms_id, choice.hf_id, revision=revision, trust_remote_code=trust_remote_code
    )
