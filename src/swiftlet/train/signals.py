"""Signals ask for a stop at the next step boundary; a second one stops at once.

Under a watchdog the second one is the watchdog's to count: whoever signals a whole tree of processes reaches a rank
directly, by the watchdog and by torchrun, and means it once. Before the first step there is nothing to save, and the
first one stops at once. A handler only sets a flag or raises: no collective and no file is touched inside it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from swiftlet import heartbeat, log
from swiftlet.errors import SwiftletError
from swiftlet.stopping import is_repeated, leave_closed_terminal, stop_signals


class Interrupted(SwiftletError):
    """The run was asked to stop and did so; the exit code is 128 + the signal's number."""

    def __init__(self, number: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + number


WAIT = b"\nstopping after this step, which is saved; a second signal stops at once\n"


@dataclass
class StopRequest:
    """The signal that asked for a stop, 0 while there is none; `is_stepping` once a step boundary will come."""

    number: int = 0
    is_stepping: bool = False

    def __bool__(self) -> bool:
        return self.number != 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; the second one ends a process that nobody watches as if there were no handler.

        Raises:
            Interrupted: no step was made yet.
        """
        if number == signal.SIGHUP:
            leave_closed_terminal()
        if self.number:
            if heartbeat.is_watched() or is_repeated(number, self.number):
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number
        if not self.is_stepping:
            raise Interrupted(
                number, f"stopped by signal {number} before a step was made", "type the same command again"
            )
        if log.rank() == 0:
            with suppress(OSError):  # standard error is closed
                # Not by the logger: one, or a progress bar, may be at work below this handler.
                os.write(2, WAIT)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn signals into a `StopRequest` while the block runs, then put the former handlers back."""
    request = StopRequest()
    former = {number: signal.signal(number, request.handle) for number in stop_signals()}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
