"""What `--columns theirs=ours` does: columns of a row, keys of its turns, and roles get the names known here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from swiftlet.data.columns import (
    ANSWERS,
    BESIDE,
    CHATS,
    OURS,
    PARTS,
    QUESTIONS,
    REASONING_KEYS,
    SPEAKERS,
    THOUGHTS,
    TURN_KEYS,
    holds_something,
)
from swiftlet.data.guesses import SYSTEMS, Row
from swiftlet.data.names import Renamed, shown
from swiftlet.data.reasons import RowFault
from swiftlet.errors import UsageError, suggest

SYSTEM = SYSTEMS[0]
TURN_NAMES = {*TURN_KEYS, *SPEAKERS}
KEYS = {*TURN_KEYS, *THOUGHTS}
OF_BOTH = {SYSTEM, *THOUGHTS}  # names of a column and, of a role or a key, in a turn


def check_columns(columns: Mapping[str, str]) -> None:
    """Make sure that `--columns theirs=ours` names columns that are ours.

    Raises:
        UsageError: an unknown name of ours.
    """
    for theirs, ours in columns.items():
        if ours not in OURS and ours not in SPEAKERS:
            raise UsageError(
                f"--columns {theirs}={ours}: {ours!r} is no column of ours",
                f"{suggest(ours, OURS | {*SPEAKERS})} (theirs=ours, such as --columns question=query)",
            )


def of_rows(columns: Mapping[str, str]) -> dict[str, str]:
    """Return those of `--columns` that name a column."""
    return {theirs: ours for theirs, ours in columns.items() if ours not in TURN_NAMES}


def of_turns(columns: Mapping[str, str]) -> dict[str, str]:
    """Return those of `--columns` that name a key of a turn, or a role; some are names of columns, too."""
    return {theirs: ours for theirs, ours in columns.items() if ours in TURN_NAMES or ours in OF_BOTH}


def rename_turn(turn: Row, names: Mapping[str, str]) -> Renamed:
    """Return a turn under our names of its keys, and its role by our name.

    Raises:
        RowFault: two keys were given one name.
    """
    renamed = rename(turn, {theirs: ours for theirs, ours in names.items() if ours in KEYS})
    for key in ("role", "from"):
        role = renamed.get(key)
        if isinstance(role, str) and names.get(role) in (SYSTEM, *SPEAKERS):
            renamed[key] = names[role]
    return renamed


def rename(values: Row, columns: Mapping[str, str]) -> Renamed:
    """Return a row, or a turn, under our names.

    A column that was mapped wins over one that had the name before, and over others that mean the same.

    Raises:
        RowFault: two columns were given one name.
    """
    mapped: dict[str, Any] = {}
    chosen: dict[str, str] = {}
    for theirs, ours in columns.items():
        if theirs not in values or (ours in chosen and values[theirs] is None):
            continue
        if mapped.get(ours) is not None:
            raise RowFault(
                "columns",
                f"{shown(chosen[ours])} and {shown(theirs)} are both {ours} by --columns: give one of them another "
                "name" + (", such as instruction and input" if ours == "query" else ""),
            )
        mapped[ours], chosen[ours] = values[theirs], theirs
    gone = columns.keys() | _rivals(mapped.keys())
    kept = {name: value for name, value in values.items() if name not in gone}
    return Renamed(kept | mapped, chosen)


def _rivals(chosen: Set[str]) -> set[str]:
    """Return the names that mean what a chosen one means: the other questions, answers, conversations, thoughts.

    Instruction and input are each but a part of a question, and rule out no other.
    """
    rivals: set[str] = set()
    for names in ({name for group in QUESTIONS for name in group}, {*ANSWERS}, {*CHATS}, {*REASONING_KEYS}):
        if chosen & names - PARTS:
            rivals |= names - chosen
    return rivals


def unused_columns(row: Row, columns: Mapping[str, str], used: Sequence[str]) -> set[str]:
    """Return the columns of an accepted row that hold something and are not used; `used` are by our names."""
    theirs = {ours: name for name, ours in of_rows(columns).items() if row.get(name) is not None}
    kept = {theirs.get(name, name) for name in (*used, *BESIDE)}
    return {name for name in row.keys() - kept if holds_something(row[name])}


def used_columns(row: Row, columns: Mapping[str, str]) -> set[str]:
    """Return those of their names that the row has, as a column or, for keys of a turn and roles, in its turns."""
    names = of_turns(columns)
    found = {theirs for theirs in of_rows(columns) if theirs in row}
    keys = {theirs for theirs, ours in names.items() if ours in KEYS}
    of_roles = {"role", "from", *(theirs for theirs in keys if names[theirs] == "role")}
    for turn in (turn for value in row.values() if names for turn in _turns(value)):
        found |= keys & turn.keys()
        found |= (names.keys() - keys) & {
            turn[key] for key in of_roles & turn.keys() if isinstance(turn[key], str)
        }
    return found


def _turns(value: Any) -> list[Row]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):  # whoever uses the column says so
            return []
    return [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []


def check_used(columns: Mapping[str, str], used: Set[str]) -> None:
    """Make sure that no flag is without effect.

    Raises:
        UsageError: no row has a column that `--columns` names.
    """
    for theirs, ours in columns.items():
        if theirs not in used:
            where = "turn of a row has a key" if ours in TURN_KEYS else "row has a column"
            where = "row, and no turn of one, has" if ours in THOUGHTS else where
            where = "turn of a row has the role" if ours in SPEAKERS else where
            raise UsageError(
                f"--columns {theirs}={ours}: no {where} {theirs!r}",
                "write the name as it is in the rows, or leave the flag out",
            )
