"""The exceptions with which programs of Python ended, and the line of the program they came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from swiftlet.doctor.levels import ERROR
from swiftlet.doctor.logs import Line

ENDINGS = ("Error", "Exception", "Exit")  # of names of exceptions; seen faster without a pattern
RAISED = re.compile(
    r"(?:^|[\])|:>-] ?|ERROR:? +)(?P<text>(?:[A-Za-z_]\w*\.)*(?P<name>[A-Z]\w*(?:Error|Exception|Exit))\b(?:: .*)?)$"
)
# What the language itself raises for what a program does; others stand for what happened elsewhere.
OWN = frozenset(
    "ArithmeticError AssertionError AttributeError EOFError FileExistsError FileNotFoundError FloatingPointError "
    "ImportError IndentationError IndexError IsADirectoryError JSONDecodeError KeyError ModuleNotFoundError NameError "
    "NotADirectoryError NotImplementedError OverflowError PermissionError RecursionError SyntaxError TypeError "
    "UnboundLocalError UnicodeDecodeError UnicodeEncodeError ValueError ZeroDivisionError".split()
)
FOLLOWS = {"ChildFailedError", "SystemExit"}  # another process failed, and says so itself
FRAME = re.compile(r"File \"(?P<file>[^\"]+)\", line (?P<line>\d+)")
LIBRARY = re.compile(r"(?:site|dist)-packages/|/lib/python\d|^<frozen")
LONGEST_TRACEBACK = 400


class Raised(NamedTuple):
    """One exception; `where` is the last frame above it that is no library's."""

    text: str
    where: str | None
    line: Line
    at: int
    is_own: bool


def find_raised(lines: Sequence[Line]) -> list[Raised]:
    """Return the exceptions of a log in its order; those that the run survived only where there are no others."""
    found = []
    for at, line in enumerate(lines):
        if line.level != ERROR or not any(word in line.text for word in ENDINGS):
            continue
        hit = RAISED.search(line.text.rstrip())
        if hit and hit["name"] not in FOLLOWS:
            found.append(Raised(hit["text"], _frame(lines, at), line, at, hit["name"] in OWN))
    return [one for one in found if not one.line.is_survived] or found


def _frame(lines: Sequence[Line], at: int) -> str | None:
    frames = []
    for line in reversed(lines[max(0, at - LONGEST_TRACEBACK) : at]):
        if line.who != lines[at].who:
            continue
        found = FRAME.search(line.text)
        if found:
            frames.append(found)
        if "Traceback (most recent call last)" in line.text:
            break
    own = [found for found in frames if not LIBRARY.search(found["file"])]
    return f"{(own or frames)[0]['file']}:{(own or frames)[0]['line']}" if frames else None
