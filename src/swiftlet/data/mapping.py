"""What `--columns theirs=ours` does: columns of a row, and keys of its turns, get the names that are known here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from swiftlet.data.columns import ANSWERS, CHATS, OURS, PARTS, QUESTIONS, TURN_KEYS, Row, shown
from swiftlet.data.reasons import RowFault
from swiftlet.errors import UsageError, suggest


def check_columns(columns: Mapping[str, str]) -> None:
    """Make sure that `--columns theirs=ours` names columns that are ours.

    Raises:
        UsageError: an unknown name of ours.
    """
    for theirs, ours in columns.items():
        if ours not in OURS:
            raise UsageError(
                f"--columns {theirs}={ours}: {ours!r} is no column of ours",
                f"{suggest(ours, OURS)} (theirs=ours, such as --columns question=query)",
            )


def of_rows(columns: Mapping[str, str]) -> dict[str, str]:
    """Return those of `--columns` that name a column."""
    return {theirs: ours for theirs, ours in columns.items() if ours not in TURN_KEYS}


def of_turns(columns: Mapping[str, str]) -> dict[str, str]:
    """Return those of `--columns` that name a key of a turn."""
    return {theirs: ours for theirs, ours in columns.items() if ours in TURN_KEYS}


def rename(values: Row, columns: Mapping[str, str]) -> dict[str, Any]:
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
    return {name: value for name, value in values.items() if name not in gone} | mapped


def _rivals(chosen: Set[str]) -> set[str]:
    """Return the names that mean what a chosen one means: the other questions, answers, conversations.

    Instruction and input are each but a part of a question, and rule out no other.
    """
    rivals: set[str] = set()
    for names in ({name for group in QUESTIONS for name in group}, {*ANSWERS}, {*CHATS}):
        if chosen & names - PARTS:
            rivals |= names - chosen
    return rivals


def used_columns(row: Row, columns: Mapping[str, str]) -> set[str]:
    """Return those of their names that the row has, as a column or, for the keys of a turn, in its turns."""
    keys = of_turns(columns)
    found = {theirs for theirs in columns.keys() - keys.keys() if theirs in row}
    for value in row.values() if keys else ():
        found.update(key for turn in _turns(value) for key in keys if key in turn)
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
            raise UsageError(
                f"--columns {theirs}={ours}: no {where} {theirs!r}",
                "write the name as it is in the rows, or leave the flag out",
            )
