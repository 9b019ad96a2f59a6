"""What messages call a column, or a key of a turn: by its name in the file, also where `--columns` gave it another."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

LONGEST_NAME = 40
_PLAIN_WORD = re.compile(r"[\w.=-]+")


class Renamed(dict[str, Any]):
    """A row, or a turn, under our names.

    Args:
        values: by our names.
        theirs: what those that were renamed are called in the file, by our names.
    """

    def __init__(self, values: Mapping[str, Any], theirs: Mapping[str, str]) -> None:
        super().__init__(values)
        self.theirs = theirs


def in_file(values: Mapping[str, Any], name: str) -> str:
    """Return what a column of a row, or a key of a turn, is called in the file."""
    return values.theirs.get(name, name) if isinstance(values, Renamed) else name


def shown(name: str) -> str:
    """Return the name of a column for a message: short, and text that UTF-8 can hold."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."


def named(values: Mapping[str, Any], name: str) -> str:
    """Return what a message calls a column of a row, or a key of a turn."""
    return shown(in_file(values, name))


def flag(theirs: str, ours: str) -> str:
    """Return the flag that gives a column, a key of a turn or a role our name."""
    word = f"{shown(theirs)}={ours}"
    return f"--columns {word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word)}"


def flag_of(values: Mapping[str, Any], name: str, ours: str) -> str:
    """Return the flag that gives a column of a row, or a key of a turn, our name, or another one of ours."""
    return flag(in_file(values, name), ours)


def key(name: str) -> str:
    """Return how jq reads a column of a row in the file."""
    is_plain = name.isascii() and name.isidentifier()
    return f".{name}" if is_plain else f".[{json.dumps(shown(name), ensure_ascii=False)}]"


def by_jq(program: str) -> str:
    """Return the command that rewrites a file of rows, one at a time."""
    program = program.replace("'", "'\\''")  # as a shell reads it
    return f"jq -c '{program}' FILE > rows.jsonl (where the file is one list: '.[] | ...')"
