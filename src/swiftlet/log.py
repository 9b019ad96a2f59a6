"""One logger for the whole program, with the rank in its prefix and secrets removed.

`info` speaks on rank 0 only, `warning` on every rank. Standard output belongs to results; the log
goes to standard error.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "swiftlet"
_SECRET_KEY = re.compile(r"token|key|secret|passw|credential", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|Bearer\s+\S+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@))"
)
_NOT_SECRET = {"max_new_tokens", "micro_batch_tokens", "num_tokens", "tokens_per_second", "tokenizer"}
MASK = "***"


def is_secret_name(name: str) -> bool:
    """Return whether a variable or argument of this name usually holds a secret."""
    lowered = name.lower()
    return lowered not in _NOT_SECRET and "tokens" not in lowered and bool(_SECRET_KEY.search(lowered))


def redact(text: str) -> str:
    """Return `text` without tokens, keys and the values of secret environment variables."""
    for name, value in os.environ.items():
        if len(value) >= 8 and is_secret_name(name) and not os.path.exists(value):
            text = text.replace(value, MASK)
    return _SECRET_TEXT.sub(MASK, text)


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
        log.setLevel(os.environ.get("SWIFTLET_LOG_LEVEL", "INFO").upper())
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


def info(message: str) -> None:
    """Log `message` on rank 0."""
    if rank() == 0:
        logger().info(message)


def warning(message: str) -> None:
    """Log `message` as a warning on every rank."""
    logger().warning("warning: %s", message)
