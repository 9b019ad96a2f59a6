"""One hook that breaks the program on purpose, so that tests can show what a failure costs.

`SWIFTLET_FAULT="site[:rank=R][:step=S][:nth=N][:restart=K]=action"` (several joined by `;`). A site is a named place
that calls `fault(site)`; an action happens there once, and with `restart` only after the K-th restart (0: before any).
Unset, a call costs one look at the environment.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from swiftlet import log
from swiftlet.errors import UsageError

VARIABLE = "SWIFTLET_FAULT"
RESTARTS = "SWIFTLET_RESTARTS"  # set by the launcher
FORM = "site[:rank=R][:step=S][:nth=N][:restart=K]=action"
SIGNALS = {"kill9": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP, "segv": signal.SIGSEGV}
FACTORS = {"nan": float("nan"), "inf": float("inf")}
DAMAGES = ("bitflip", "truncate", "zero_tail")
_hits: Counter[int] = Counter()


class Fault(NamedTuple):
    """One planned fault; `nth` counts the matching visits of the site from 1, 0 meaning every visit."""

    site: str
    action: str
    argument: float = 0.0
    rank: int | None = None
    step: int | None = None
    nth: int = 1
    restart: int | None = None


@functools.cache
def parse(text: str) -> tuple[Fault, ...]:
    """Return the faults that `text` plans.

    Raises:
        UsageError: `text` does not have the form that the module's docstring shows.
    """
    return tuple(_parse_one(part) for part in text.split(";") if part)


def _parse_one(text: str) -> Fault:
    try:
        place, action, *argument = _split_action(text)
        site, *conditions = place.split(":")
        numbers = {key: int(value) for key, value in (c.split("=") for c in conditions)}
        return Fault(site, action, float(argument[0]) if argument else 0.0, **numbers)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{VARIABLE}={text!r} is not a fault", FORM) from error


def _split_action(text: str) -> list[str]:
    for with_argument in ("sleep", "spike", "exit"):
        head, found, value = text.rpartition(f"={with_argument}=")
        if found:
            return [head, with_argument, value]
    place, action = text.rsplit("=", 1)
    known = {*SIGNALS, *FACTORS, *DAMAGES, "exc", "exit", "enospc", "eio", "oom", "spin"}
    if action not in known:
        raise ValueError(action)
    return [place, action]


def fault(site: str, *, step: int | None = None, path: Path | None = None) -> float:
    """Do what `SWIFTLET_FAULT` plans for this site, if anything; return the factor for a value (1.0: none)."""
    text = os.environ.get(VARIABLE)
    if not text:
        return 1.0
    factor = 1.0
    restart = int(os.environ.get(RESTARTS, "0"))
    for number, planned in enumerate(parse(text)):
        if planned.site != site or planned.rank not in (None, log.rank()) or planned.step not in (None, step):
            continue
        if planned.restart not in (None, restart):
            continue
        _hits[number] += 1
        if planned.nth in (0, _hits[number]):
            factor *= _act(planned, path)
    return factor


def _act(planned: Fault, path: Path | None) -> float:
    action, argument = planned.action, planned.argument
    if action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[action])
    elif action in FACTORS or action == "spike":
        return FACTORS.get(action, argument)
    elif action == "sleep":
        time.sleep(argument)
    elif action == "spin":
        while True:  # holds the interpreter's lock most of the time
            pass
    elif action == "exit":
        os._exit(int(argument) or 1)
    elif action in ("enospc", "eio"):
        code = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(code, os.strerror(code), str(path) if path else None)
    elif action == "oom":
        import torch

        raise torch.OutOfMemoryError("injected: out of memory")
    elif action == "exc":
        raise RuntimeError(f"injected at {planned.site}")
    elif path is not None:
        damage(path, action)
    return 1.0


def damage(path: Path, action: str) -> None:
    """Spoil a file: flip one bit in its middle, cut it in half, or fill its second half with zeros."""
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    if action == "bitflip" and content:
        content[half] ^= 1
    elif action == "truncate":
        del content[half:]
    elif action == "zero_tail":
        content[half:] = bytes(len(content) - half)
    path.write_bytes(content)
