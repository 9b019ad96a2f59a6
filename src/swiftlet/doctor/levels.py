"""How serious a line of a log is: what its head says, in the ways in which loggers write it.

A warning that a run survived is not why it failed, so it must not go before an error, however near to a root it is.
"""

from __future__ import annotations

import re

ERROR, PLAIN, WARNING, QUIET = range(4)

# Time stamps, processes and names of loggers before the level; a token has one way to match, so this stays linear.
HEAD = (
    r"^\s*(?:(?:[^\s:\[]+:)?\d+:(?=\[))?"  # of grep -n
    r"(?:[A-Z][a-z]{2} )?(?:\[[\d,]+\]<std(?:err|out)>:)?(?:\[(?:rank ?|default)\d+\]:? ?)?"
    r"(?:[^\s\d\[\]()|]*[\d\[\]()|]\S*\s+|-\s+|[A-Za-z_.-]+\s+(?=[|-]\s)|[A-Za-z_.]+:\s+(?=\[)|[A-Z]CCL\s+(?=INFO|TRACE)){0,8}?"
    r"(?:[\d:.,]+\](?=\[))?\W{0,3}"
)
NAMED = r"^\W?\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S*\s+[A-Za-z_][\w.]*\s+(?=[A-Z]+\s)"  # time, logger, level
WORD = (
    r"(?:(?P<quiet>TRACE|DEBUG|INFO|EVENT|NOTICE)|(?P<warning>WARN(?:ING)?)|(?P<error>ERROR|CRITICAL|FATAL))"
    r"\b(?![=/])"
)
LOWER = r"(?<=\[)(?P<lower>trace|debug|info|warn(?:ing)?|error|critical|fatal)(?=\])"  # of C++ loggers
LETTER = r"(?P<letter>[DIWEF])(?:(?:20\d\d)?\d{4} \d\d:\d\d| ?\w+\.\w{1,4}:\d+)"
WARNED = r"(?:[A-Z]\w*)?Warning(?=:)|W[A-Z1-9]\d{4}(?=[:\s(])"  # of Python, and a message code
LEVEL = re.compile(f"(?:{HEAD}|{NAMED})(?:{WORD}|{LOWER}|{LETTER}|{WARNED})")
# Records of fields: level=warning, and the same as JSON.
FIELD = re.compile(
    r"^\s*(?:(?:(?:time|ts)=\S+ +)?level=|"
    r"\{(?:\"\w+\": ?(?:\"[^\"]*\"|[\d.]+), ?){0,6}\"level(?:name)?\": ?\")(?P<word>[A-Za-z]+)"
)
WORD_ALONE = re.compile(WORD)
# The head of an error further on in a line that only informs: the line break between the two was lost.
BEGINS_ERROR = re.compile(
    r"\bTraceback \(most recent call last\)"
    r"|(?<!\S)(?:ERROR \d\d-\d\d \d\d:|\[ERROR\] (?:\d{4}-\d\d-\d\d|[A-Z_]+\(\d+,))"
)
# One of these is in every head that says a level: they are found much faster than the whole.
LEVEL_WORDS = (
    *("TRACE", "DEBUG", "INFO", "EVENT", "NOTICE", "WARN", "ERROR", "CRITICAL", "FATAL"),
    *("Warning", "level", "[trace]", "[debug]", "[info]", "[warn", "[error]", "[critical]", "[fatal]"),
)
LEVEL_LETTERS = re.compile(rf"{LETTER}|W[A-Z1-9]\d{{4}}")
LETTERS = {"D": QUIET, "I": QUIET, "W": WARNING, "E": ERROR, "F": ERROR}
LONGEST_HEAD = 160
NAMED_FAILURES = ("Error", "Exception", "Traceback")
FAILED = re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b|^\s*Traceback \(most")
FAILED_CODE = re.compile(r"\bE[A-Z1-9]\d{4}\b")
# A counter of what went wrong, at zero.
ZERO = re.compile(r"\b(?:errors?|ecc|faults?|fail\w*|lost|down)\b[^:=]{0,40}[:=]\s*0\s*$", re.IGNORECASE)
STEP = re.compile(r"\bloss['\"]?\s*[:=]\s*['\"]?-?\d")  # what a run prints as it goes on


def level_of(text: str) -> int:
    """Return ERROR, WARNING, QUIET, or PLAIN where a line does not say."""
    head = text[:LONGEST_HEAD]
    if not any(word in head for word in LEVEL_WORDS) and not LEVEL_LETTERS.search(head):
        return _unsaid(text)
    record = FIELD.search(head) if "level" in head else None
    found = LEVEL.match(head) if record is None else record
    if found is None:
        return _unsaid(text)
    if record is None and found["letter"]:
        return LETTERS[found["letter"]]
    lower = found["word"] if record else found["lower"]
    if lower:
        found = WORD_ALONE.match(lower.upper())
        if found is None:
            return _unsaid(text)
    return QUIET if found["quiet"] else ERROR if found["error"] else WARNING


def _unsaid(text: str) -> int:
    """Return how serious a line is whose head does not say it."""
    if text.rstrip().endswith("0") and ZERO.search(text):
        return QUIET
    is_named = any(word in text for word in NAMED_FAILURES) and FAILED.search(text)
    return ERROR if is_named or FAILED_CODE.search(text) else PLAIN


def error_head(text: str) -> int:
    """Return where an error begins within a line that only informs, else 0."""
    if text.find("ERROR", 2) < 0 and "Traceback" not in text:
        return 0
    found = BEGINS_ERROR.search(text, 1)
    return found.start() if found and level_of(text) == QUIET else 0
