"""One logger for the whole program, with the rank in its prefix and secrets removed.

`info` speaks on rank 0 only, `warning` on every rank. Standard output belongs to results; the log
goes to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

NAME = "swiftlet"
LEVEL, LEVELS = "SWIFTLET_LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# A word of a name: not "tokenizer", "num_tokens" or "keyboard".
_SECRET_NAME = re.compile(r"token(?![a-z])|keys?(?![a-z])|secret|passw|credential", re.IGNORECASE)
# Keys as their makers write them, and the password of a URL: with a part of letters and digits that is unlike words, so
# that prose and paths stay.
_SECRET_TEXT = re.compile(
    r"(?<![A-Za-z0-9])hf_(?:[A-Za-z0-9]{20,}|(?=[A-Za-z]*[0-9])[A-Za-z0-9]{8,})"
    r"|(?<![A-Za-z0-9])sk-(?=(?:[A-Za-z0-9]*[_-])*(?=[A-Za-z]*[0-9])[A-Za-z0-9]{8})[A-Za-z0-9_-]+"
    r"|\bBearer\s+(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<![A-Za-z0-9])(?:gh[a-z]_|github_pat_|glpat-)(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"
    r"|(?<![A-Za-z0-9])ms-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![A-Za-z0-9])"
    r"|(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|(?<=[Aa]uthorization: )Basic\s+\S+"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
    r"|(?<=://)(?=[A-Za-z_.~-]*[0-9])[A-Za-z0-9_.~-]{16,}(?=@)"
)
# What a URL says for a secret, such as the signature of a link that stands for its maker.
_SECRET_QUERY = re.compile(
    r"([?&][\w.%-]*(?:token|(?<![a-z])(?:api|access)?key|secret|password|passwd|credential|signature)"
    r"(?![a-z])[\w.%-]*=)[^\s&#'\"]{6,}",
    re.IGNORECASE,
)
MASK = "***"
LONG, SHORT = 8, 6  # characters of a secret that is found anywhere, and of one that must stand alone


def is_secret_name(name: str) -> bool:
    """Return whether a variable or argument of this name usually holds a secret."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """Return `text` without tokens, keys and the values of secret environment variables, also as JSON or repr."""
    for name, value in os.environ.items():
        if not is_secret_name(name) or os.path.exists(value):
            continue
        is_like_a_key = re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)
        for spelling in _spellings(value):
            if len(value) >= LONG:
                text = text.replace(spelling, MASK)
            elif len(value) >= SHORT and is_like_a_key:
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(spelling)}(?![A-Za-z0-9])", MASK, text)
    return _SECRET_QUERY.sub(rf"\1{MASK}", _SECRET_TEXT.sub(MASK, text))


def _spellings(value: str) -> set[str]:
    texts = repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False)
    return {value, *(text[1:-1] for text in texts)}


def redacted(value: Any) -> Any:
    """Return a JSON value whose texts hold no secrets; before it is written, as JSON escapes what they look like."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redacted(inner) for name, inner in value.items()}
    return [redacted(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that is not the user's, without secrets; an excepthook."""
    tell(redact("".join(traceback.format_exception(kind, error, trace))), end="")


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Stderr(logging.Handler):
    """Writes to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self.handleError(record)


def rank() -> int:
    """Return this process's global rank, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def logger() -> logging.Logger:
    """Return the logger, set up on first use."""
    log = logging.getLogger(NAME)
    if not log.handlers:
        handler = _Stderr()
        prefix = f"[rank {rank()}] " if world_size() > 1 else ""
        handler.setFormatter(_Redacting(f"{prefix}%(message)s"))
        log.addHandler(handler)
        log.propagate = False
        log.setLevel((os.environ.get(LEVEL) or "INFO").upper())
    return log


@contextmanager
def silent(is_silent: bool = True) -> Iterator[None]:
    """Log nothing but errors meanwhile: another process has said it already."""
    log = logger()
    level = log.level
    if is_silent:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def tell(text: str, end: str = "\n") -> None:
    """Print on standard error; where nobody reads it or it is full, only the exit code says what happened."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def info(message: str) -> None:
    """Log `message` on rank 0."""
    if rank() == 0:
        logger().info(message)


def warning(message: str) -> None:
    """Log `message` as a warning on every rank."""
    logger().warning("warning: %s", message)
