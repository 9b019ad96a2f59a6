"""One thing that is wrong: its severity, its cause in words of a language, and one command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from swiftlet.doctor.scene import table
from swiftlet.doctor.tables import fill

ERROR, WARNING, NOTE = "error", "warning", "note"
# A run fails; a run may fail; nothing to mend. 2 is a wrong command line, as everywhere.
EXIT_CODES = {ERROR: 1, WARNING: 10, NOTE: 0}


class Finding(NamedTuple):
    """One finding by its id in findings.json, and what is filled into its words."""

    id: str
    fields: dict[str, str]
    is_aside: bool = False  # about a device that no run started here uses: a note, with nothing to type

    @property
    def severity(self) -> str:
        """error, warning or note."""
        return NOTE if self.is_aside else str(_row(self.id)["severity"])

    def cause(self, language: str) -> str:
        """Return what is wrong."""
        cause = fill(_row(self.id)[language], self.fields)
        return cause + table("findings")["aside"][language] if self.is_aside else cause

    def command(self, language: str) -> str:
        """Return what to type, empty where nothing is to mend."""
        if self.is_aside:
            return ""
        command = _row(self.id)["command"]
        return fill(command if isinstance(command, str) else command[language], self.fields)

    def as_json(self, language: str) -> dict[str, str]:
        """Return the finding for a program."""
        words = {"cause": self.cause(language), "command": self.command(language)}
        return {"id": self.id, "severity": self.severity, **words}


def _row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = table("findings")["findings"][name]
    return row


def found(name: str, /, **fields: object) -> Finding:
    """Return the finding of this id."""
    return Finding(name, {key: str(value) for key, value in fields.items()})


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code of the worst finding."""
    kinds = {finding.severity for finding in findings}
    return next((EXIT_CODES[kind] for kind in (ERROR, WARNING) if kind in kinds), 0)


def gigabytes(size: int) -> str:
    """Return a size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
