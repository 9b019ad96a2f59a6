"""The exceptions with which programs of Python ended, and the line of the program they came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from swiftlet.doctor.levels import ERROR, PLAIN
from swiftlet.doctor.logs import Line

ENDINGS = ("Error", "Exception", "Exit")  # of names of exceptions; seen faster without a pattern
HEAD = r"(?:^|[\])|:>-] ?|ERROR:? +)"
RAISED = re.compile(
    HEAD + r"(?P<text>(?:[A-Za-z_]\w*\.)*(?P<name>[A-Z]\w*(?:Error|Exception|Exit))\b(?:: .*)?)$"
)
# Some are called otherwise: then it is known by the traceback that it ends.
ENDED = re.compile(HEAD + r"(?P<text>(?:[A-Za-z_]\w*\.)*(?P<name>[A-Z]\w*)(?:: .*)?)$")
CODE = re.compile(HEAD + r"(?:  File \"| {4,}\S)")
BEGINS = "Traceback (most recent call last)"
# While objects are deleted, or after the end: it stops nothing.
IGNORED = re.compile(r"Exception ignored in|Error in atexit|Error in sys\.excepthook")
# What kills a process outside of Python, as the process, its shell or a debugger prints it.
CRASHED = re.compile(
    r"Fatal Python error: .+|(?:Segmentation fault|Bus error|Illegal instruction)(?=\s*(?:\(core dumped\)|$))"
    r"|`[A-Z](?!ermination)[\w ]+` is detected by the operating system|\*\*\* SIG(?:SEGV|BUS|ABRT|FPE|ILL) \(@.+"
    r"|terminate called after throwing an instance of .+"
    r"|(?:free|malloc|realloc|munmap_chunk)\(\): \w.+|double free or corruption.*|\*\*\* stack smashing detected.*"
    r"|Aborted(?= +\(core dumped\))|(?<=\d )Killed(?= {2,}\S)"
)
CRASH_WORDS = (
    "Fatal",
    "fault",
    "error",
    "terminate",
    "free",
    "alloc",
    "munmap",
    "stack",
    "Aborted",
    "Killed",
    "Illegal",
    "detected",
    "SIG",
)
UNCAUGHT = "terminate called"  # by C++, which prints it before the message of the exception, or beside it
WHAT = re.compile(r"^\s*(what\(\): .+)$")
# What the language itself raises for what a program does; others stand for what happened elsewhere.
OWN = frozenset(
    "ArithmeticError AssertionError AttributeError EOFError FileExistsError FileNotFoundError FloatingPointError "
    "ImportError IndentationError IndexError IsADirectoryError JSONDecodeError KeyError ModuleNotFoundError NameError "
    "NotADirectoryError NotImplementedError OverflowError PermissionError RecursionError SyntaxError TypeError "
    "UnboundLocalError UnicodeDecodeError UnicodeEncodeError ValueError ZeroDivisionError "
    # and libraries for what they are given: settings, templates, names and files of a hub
    "ComposerError ConfigAttributeError ConfigKeyError ConstructorError EntryNotFoundError GatedRepoError "
    "HFValidationError ParserError RepositoryNotFoundError RevisionNotFoundError SafetensorError ScannerError "
    "TemplateError TemplateSyntaxError UndefinedError ValidationError".split()
)
FILES = "OSError"  # of the program where a traceback shows its line
FOLLOWS = {"ChildFailedError", "SystemExit"}  # another process failed, and says so itself
OTHER_ENDED = "EOFError"  # without words: the process at the other end of a pipe is gone
# Torch raises it for a wrong call, and as often to tell that something elsewhere failed.
RUNTIME = "RuntimeError"
LONGEST_MESSAGE = 12  # lines of one exception
FRAME = re.compile(r"File \"(?P<file>[^\"]+)\", line (?P<line>\d+)")
LIBRARY = re.compile(r"(?:site|dist)-packages/|/lib/python\d|^<frozen")
LONGEST_TRACEBACK = 400


class Raised(NamedTuple):
    """One exception or crash; `where` is the last frame above it that is no library's."""

    text: str
    where: str | None
    line: Line
    at: int
    name: str
    is_own: bool
    is_open: bool = (
        False  # own by its words only: a RuntimeError or OSError may follow from what is told elsewhere
    )

    @property
    def is_crash(self) -> bool:
        """Return whether the process was ended outside of Python."""
        return not self.name

    def is_told_by(self, line: Line, at: int) -> bool:
        """Return whether a line tells why a process crashed, which often prints its end without saying its rank."""
        below = LONGEST_MESSAGE if self.text.startswith(UNCAUGHT) else 1
        is_its = line.who == self.line.who or (self.line.rank is None and line.source == self.line.source)
        return is_its and at <= self.at + below


def find_raised(lines: Sequence[Line], words: Mapping[str, re.Pattern[str]]) -> list[Raised]:
    """Return the exceptions of a log in its order; those that the run survived only where there are no others.

    Args:
        lines: of the log.
        words: of a RuntimeError: those by which it tells of something `elsewhere`, a `code` that stands below one, and
            a code of a `class` of wrong calls, of which the exception itself tells more.
    """
    found: list[Raised] = []
    tracebacks: dict[str, _Traceback] = {}
    for at, line in enumerate(lines):
        if at:
            _see(tracebacks, lines[at - 1], at - 1)
        crash = CRASHED.search(line.text) if any(word in line.text for word in CRASH_WORDS) else None
        if crash and line.level in (ERROR, PLAIN):
            where = _below(lines, at) if "Python" in crash[0] else None
            found.append(Raised(_crash(lines, at, crash[0]), where, line, at, "", True))
            continue
        hit = _ending(lines, at)
        if not hit or hit["name"] in FOLLOWS:
            continue
        where, begin = _above(tracebacks.get(line.who), at)
        if begin and IGNORED.search(lines[begin - 1].text):
            continue
        is_open = hit["name"] == FILES
        is_own = hit["name"] in OWN and hit["text"] != OTHER_ENDED or is_open and where is not None
        if hit["name"] == RUNTIME:
            code = _code(lines, at, words["code"])
            is_open = not (code and words["class"].search(code))
            is_own = not is_open or not (code or where is None or words["elsewhere"].search(hit["text"]))
        found.append(Raised(hit["text"], where, line, at, hit["name"], is_own, is_open))
    return [one for one in found if not one.line.is_survived] or found


def _ending(lines: Sequence[Line], at: int) -> re.Match[str] | None:
    """Return the exception of a line: known by its name, or by the traceback that it ends."""
    line = lines[at]
    if line.level == ERROR and any(word in line.text for word in ENDINGS):
        hit = RAISED.search(line.text.rstrip())
        if hit:
            return hit
    if line.level not in (ERROR, PLAIN) or not at or "  " not in lines[at - 1].text or CODE.search(line.text):
        return None
    above = at - 1
    while above > max(0, at - LONGEST_TRACEBACK) and CODE.search(lines[above].text):
        above -= 1
    return ENDED.search(line.text.rstrip()) if above < at - 1 and BEGINS in lines[above].text else None


def _crash(lines: Sequence[Line], at: int, text: str) -> str:
    """Return how a process was ended, with what C++ says of it in the next line."""
    what = WHAT.match(lines[at + 1].text) if at + 1 < len(lines) else None
    return f"{text}, {what[1]}" if what else text


def _code(lines: Sequence[Line], at: int, pattern: re.Pattern[str]) -> str:
    """Return the code that stands below an exception as a part of its message."""
    for line in lines[at + 1 : at + LONGEST_MESSAGE]:
        found = pattern.search(line.text) if line.who == lines[at].who else None
        if found:
            return found[0]
        if line.who == lines[at].who and (BEGINS in line.text or RAISED.search(line.text)):
            break
    return ""


@dataclass
class _Traceback:
    """The last traceback of a process: where it begins, and its frames with their places."""

    begin: int | None = None
    frames: list[tuple[int, re.Match[str]]] = field(default_factory=list)


def _see(tracebacks: dict[str, _Traceback], line: Line, at: int) -> None:
    """Keep what a line says of the traceback of its process."""
    if BEGINS in line.text:
        tracebacks[line.who] = _Traceback(at)
    if 'File "' in line.text and (found := FRAME.search(line.text)):
        tracebacks.setdefault(line.who, _Traceback()).frames.append((at, found))


def _above(traceback: _Traceback | None, at: int) -> tuple[str | None, int | None]:
    """Return the frame of an exception, and where its traceback begins."""
    if traceback is None:
        return None, None
    first = at - LONGEST_TRACEBACK
    near = takewhile(lambda frame: frame[0] >= first, reversed(traceback.frames))
    begin = traceback.begin if traceback.begin is not None and traceback.begin >= first else None
    return _where([found for _, found in near]), begin


def _below(lines: Sequence[Line], at: int) -> str | None:
    """Return the frame at which Python says that it crashed: the innermost stands first."""
    frames = (FRAME.search(line.text) for line in lines[at + 1 : at + LONGEST_MESSAGE])
    return _where([found for found in frames if found])


def _where(frames: Sequence[re.Match[str]]) -> str | None:
    own = [found for found in frames if not LIBRARY.search(found["file"])]
    return f"{(own or frames)[0]['file']}:{(own or frames)[0]['line']}" if frames else None
