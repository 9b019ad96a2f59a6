"""The tables of the doctor: JSON beside this file, and JSON that people add in a folder of their own.

A file of a user has the same form as ours: `causes` (a list), `codes` (by kind) and `remedies`. What it says of a
code, or of a cause with a known id, replaces ours; the rest is added.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet.errors import SwiftletError

OURS = Path(__file__).parent / "tables"
VARIABLE = "SWIFTLET_DOCTOR_DIR"
LANGUAGES = ("en", "zh")
CODE_DEPTH = 50  # of a code that tells its cause by itself
ARGUMENT_DEPTH = 60  # of one that only says that an argument was refused
WAITING_DEPTH = 60  # from here on a cause is only that one rank waited for another
WAIT_DEPTH = 70  # of a code that says so
STOPPED_DEPTH = 76  # that a run was stopped from outside, which does not say what it did until then
CHILD_DEPTH = 78  # from here on a launcher only says that one of its processes ended
DEPTHS = {"argument": ARGUMENT_DEPTH, "waited": WAIT_DEPTH, "socket": WAIT_DEPTH, "rootinfo": WAIT_DEPTH}


class TableError(SwiftletError):
    """A table that a user wrote and that cannot be read."""


Words = Mapping[str, str]  # by language


@dataclass(frozen=True)
class Cause:
    """One cause: the patterns that show it, and what to say and do."""

    id: str
    depth: int
    words: Words
    remedy: Words
    match: tuple[re.Pattern[str], ...] = ()
    warns: tuple[re.Pattern[str], ...] = ()  # as `match`, of lines after which a run may well go on
    codes: frozenset[str] = frozenset()
    also: tuple[re.Pattern[str], ...] = ()
    unless: tuple[re.Pattern[str], ...] = ()
    is_likely: bool = False


class Code(NamedTuple):
    """What is known of one code; `hides` when it does not tell its cause."""

    name: str
    hides: bool
    words: Words
    remedy: Words
    depth: int


class Spelling(NamedTuple):
    """One way in which logs write the codes of a kind, and how they are shown, where not as they are known."""

    kind: str
    pattern: re.Pattern[str]
    shown: str
    before: re.Pattern[str] | None  # what stands before it; looked at afterwards, as it is found slowly
    base: int = 10  # in which it writes the number of a code, where not in that of the table

    def code(self, written: str) -> str:
        """Return a code as the table has it."""
        if self.base != 10:
            return str(int(written, self.base))
        return written.lower() if written.startswith("0X") else written


@dataclass
class Tables:
    """Everything that is known, of ours and of the user."""

    causes: dict[str, Cause] = field(default_factory=dict)
    codes: dict[str, dict[str, Code]] = field(default_factory=dict)
    remedies: dict[str, Words] = field(default_factory=dict)
    find: list[Spelling] = field(default_factory=list)
    # What is said in one, and below it.
    runtime_errors: dict[str, re.Pattern[str]] = field(default_factory=dict)
    # A module's package, where that is called otherwise.
    packages: dict[str, str] = field(default_factory=dict)

    def code(self, kind: str, code: str) -> Code | None:
        """Return what is known of a code: of itself, else of the family that it begins like."""
        known = self.codes.get(kind, {})
        names = (code, *(f"{code[:length]}*" for length in range(len(code), 0, -1)))
        return next((known[name] for name in names if name in known), None)


def user_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of a user's own tables: SWIFTLET_DOCTOR_DIR, else swiftlet/doctor where settings live."""
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    settings = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or os.path.expanduser('~')}/.config"
    return Path(settings) / "swiftlet" / "doctor"


def load(environ: Mapping[str, str]) -> Tables:
    """Return our tables with those of the user.

    Raises:
        TableError: a file of the user is not of the form of ours, with what is wrong in it.
    """
    tables = Tables()
    for name in ("codes.json", "causes.json"):
        _add(tables, json.loads((OURS / name).read_text("utf-8")))
    folder = user_folder(environ)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            _add(tables, json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise TableError(
                f"{path} is no table of the doctor: {reason}",
                "docs/doctor.md shows the form; or move the file away",
            ) from error
    return tables


def _words(row: Mapping[str, Any]) -> Words:
    """Return the words of a row in each language; one language is enough and stands for the other."""
    english, chinese = row.get("en"), row.get("zh")
    if not (english or chinese) and not (isinstance(english, str) and isinstance(chinese, str)):
        raise KeyError("en")
    return {"en": english or chinese or "", "zh": chinese or english or ""}


def _remedy(row: Mapping[str, Any], remedies: Mapping[str, Words]) -> Words:
    remedy = row["remedy"]
    return remedies[remedy] if isinstance(remedy, str) else _words(remedy)


def _patterns(row: Mapping[str, Any], name: str) -> tuple[re.Pattern[str], ...]:
    found = row.get(name, ())
    return tuple(re.compile(text, re.MULTILINE) for text in ([found] if isinstance(found, str) else found))


def _add(tables: Tables, content: Mapping[str, Any]) -> None:
    for name, row in content.get("remedies", {}).items():
        tables.remedies[name] = _words(row)
    for name, pattern in content.get("runtime_errors", {}).items():
        tables.runtime_errors[name] = re.compile(pattern)
    tables.packages.update(content.get("packages", {}))
    for entry in content.get("find", ()):
        pattern = re.compile(entry["pattern"], re.MULTILINE)
        before = re.compile(entry["before"], re.MULTILINE) if "before" in entry else None
        tables.find.append(
            Spelling(entry["space"], pattern, entry.get("shown", "{code}"), before, entry.get("base", 10))
        )
    for kind, rows in content.get("codes", {}).items():
        for code, row in rows.items():
            remedy = row["remedy"]
            depth = row.get(
                "depth", DEPTHS.get(remedy, CODE_DEPTH) if isinstance(remedy, str) else CODE_DEPTH
            )
            tables.codes.setdefault(kind, {})[code] = Code(
                row.get("name", ""),
                bool(row.get("hides")),
                _words(row),
                _remedy(row, tables.remedies),
                int(depth),
            )
    for row in content.get("causes", ()):
        tables.causes[row["id"]] = Cause(
            row["id"],
            int(row.get("depth", CODE_DEPTH)),
            _words(row),
            _remedy(row, tables.remedies),
            _patterns(row, "match"),
            _patterns(row, "warns"),
            frozenset(row.get("codes", ())),
            _patterns(row, "also"),
            _patterns(row, "unless"),
            bool(row.get("likely")),
        )


def language(environ: Mapping[str, str], asked: str | None = None) -> str:
    """Return the language of messages: as asked, else Chinese where LC_ALL, LC_MESSAGES or LANG say so."""
    if asked in LANGUAGES:
        return asked
    said = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    return "zh" if said.lower().startswith("zh") else "en"


def fill(text: str, fields: Mapping[str, str | None]) -> str:
    """Return `text` with its {names} replaced; what the log does not say is left out with its brackets."""
    known = {name: value.strip() for name, value in fields.items() if value and value.strip()}
    text = re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], "\0"), text)
    for unsaid in (r" ?\([^()\0]*\0[^()]*\)", r"（[^（）\0]*\0[^（）]*）", r" ?\[\0\]"):
        text = re.sub(unsaid, "", text)
    return text.replace("\0", "?")
