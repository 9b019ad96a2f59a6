"""Which signals ask a run to stop, when the kernel sends one, and what becomes of the output of a closed terminal."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# What a scheduler says before it ends a job: Slurm with --signal, LSF at a limit of time, SGE with -notify.
NOTICES = (signal.SIGUSR1, signal.SIGUSR2)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *NOTICES)
AT_ONCE = signal.SIGQUIT  # to whoever watches a run: nothing is saved
OUTPUTS = (1, 2)
PR_SET_PDEATHSIG = 1


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a run to stop; a terminal that closes is none under nohup."""
    is_kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (is_kept and number == signal.SIGHUP))


class Stopped(SystemExit):
    """This process was asked to stop and leaves, cleaning up; the exit code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def leaving() -> Iterator[None]:
    """Leave by `Stopped` when asked to stop, so that drafts and temporary folders go; Ctrl-C does so by itself.

    Not for the processes of a run: in a collective they would hear nothing, and whoever started them would wait.
    """

    def leave(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
        raise Stopped(number)

    heard = [number for number in stop_signals() if number != signal.SIGINT]
    former = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Let the kernel send SIGTERM when the process that has started this one dies: no rank goes on unwatched."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def is_repeated(number: int, former: int) -> bool:
    """Return whether a signal only repeats what was asked for: the kernel and the shell both tell of a closed terminal,
    and a scheduler sends SIGTERM some time after its notice, before it kills.

    Args:
        former: the first signal, 0 when this is the first.
    """
    if number == signal.SIGTERM:
        return former in NOTICES
    return former != 0 and number in (signal.SIGHUP, *NOTICES)


def has_no_reader(stream: int) -> bool:
    """Return whether who read what is written to a file number has left: `head`, or a terminal that was closed."""
    output = select.poll()
    output.register(stream, 0)  # no event but an end or an error of the other side
    return bool(output.poll(0))


def leave_closed_terminal() -> None:
    """Let what goes to a terminal that was closed go nowhere, so that a run can still save; for use in a handler."""
    for stream in OUTPUTS:
        if has_no_reader(stream):
            send_nowhere(stream)


def send_nowhere(stream: int) -> None:
    """Let what is written to a file number be lost from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)
