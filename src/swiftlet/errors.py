"""Errors a user can mend: what is wrong, the value found, and what to type.

Everything that is the user's to mend is a `SwiftletError`; anything else that escapes is a bug of
ours and shows a traceback. The exit code of a failed run is a property of the class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MOST_LISTED = 40


class SwiftletError(Exception):
    """A mistake with a message (what is wrong, the value found) and a hint (what to type)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(SwiftletError):
    """A wrong command line, found before torch is imported."""

    exit_code = 2


class CheckpointError(SwiftletError):
    """No valid checkpoint where one was asked for, or one that does not belong to this run."""

    exit_code = 3


class DataError(SwiftletError):
    """Rows that cannot be trained on."""

    exit_code = 4


class SaveError(SwiftletError):
    """A checkpoint could not be written."""

    exit_code = 5


class NonFiniteError(SwiftletError):
    """A loss or gradient that is not finite; nothing was updated."""

    exit_code = 6


class OutOfMemoryError(SwiftletError):
    """The device has too little memory for this run."""

    exit_code = 7


class Mistakes(UsageError):
    """Several mistakes, reported together; a wrong command line, but where all are of one other kind."""

    def __init__(self, mistakes: Sequence[SwiftletError]) -> None:
        super().__init__("\n".join(mistake.message for mistake in mistakes))
        self.mistakes = tuple(mistakes)
        codes = {mistake.exit_code for mistake in mistakes}
        self.exit_code = codes.pop() if len(codes) == 1 else UsageError.exit_code

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)


def raise_all(mistakes: Sequence[SwiftletError]) -> None:
    """Raise what was found: nothing, the one mistake, or all of them together.

    Raises:
        SwiftletError: the only mistake found.
        Mistakes: there are several.
    """
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        raise Mistakes(mistakes)


def suggest(name: str, possible: Iterable[str]) -> str:
    """Return "did you mean X?" for the nearest known name, or the possible names, of very many some like it."""
    names = sorted(possible)
    if near := nearest(name, names):
        return f"did you mean {near[0]}?"
    if len(names) > MOST_LISTED:
        some = nearest(name, names, most=3, cutoff=0.0)
        return f"{len(names)} names are known, such as {', '.join(some)}"
    return "choose one of " + ", ".join(names) if names else ""


def nearest(name: str, possible: Iterable[str], *, most: int = 1, cutoff: float = 0.8) -> list[str]:
    """Return the known names like this one, the nearest first; case, dashes and underscores make no difference.

    With a lower cutoff flags of other tools are taken for ours: --ref_model for --model, --loss_scale for --do_sample.
    """
    spelled = {_letters(one): one for one in possible}
    near = difflib.get_close_matches(_letters(name), spelled, n=most, cutoff=cutoff)
    return [spelled[letters] for letters in near]


def _letters(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """Return `table[name]`, or say what was asked for and what is possible.

    Args:
        what: the flag or the kind of thing asked for, as the user knows it.

    Raises:
        UsageError: the table has no such name.
    """
    if name not in table:
        raise UsageError(f"unknown {what} {name!r}", suggest(name, table))
    return table[name]


def describe(value: Any, limit: int = 80) -> str:
    """Return `value` as a short quoted string for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a block that reads a file, which was found whole a moment before, that the disk does not give it.

    Raises:
        SwiftletError: it does not.
    """
    try:
        yield
    except OSError as error:
        raise SwiftletError(
            f"{path} cannot be read: {error.strerror or error}",
            "look at the disk it is on; if it is fine, type the command again",
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says that is not blank, the name of its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
