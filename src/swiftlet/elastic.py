"""torchrun, without its report of a failed process: the watchdog has the first cause and prints it once.

What torchrun alone knows, which rank a signal has killed, is left where the watchdog finds it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swiftlet import heartbeat
from swiftlet.stopping import NOTICES, end_with_parent

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# torchrun kills what does not leave within 30 s of the first failure; a kill before that is a cause of its own.
FIRST_S = 20
LOG_FOLDER = "PET_LOG_DIR"  # read by torchrun, which never removes the one that it makes under /tmp


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun's command line; return 0, or 1 when a process of the run failed, or 128 + a signal."""
    end_with_parent()
    # A scheduler that tells every process means the watchdog; were they ignored, ranks would not hear them either.
    for number in NOTICES:
        signal.signal(number, lambda *_: None)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if told := os.environ.get(heartbeat.VARIABLE):
        os.environ.setdefault(LOG_FOLDER, str(Path(told) / "torchrun"))
    try:
        torchrun(list(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        speak_for_the_killed(error)
        return heartbeat.FAILED
    except SignalException as error:
        return 128 + error.sigval
    return 0


def speak_for_the_killed(error: ChildFailedError) -> None:
    """Leave last words for each rank that a signal killed before torchrun began to end the others with SIGTERM."""
    told = os.environ.get(heartbeat.VARIABLE)
    failures = error.failures
    first_s = min(failure.timestamp for failure in failures.values())
    numbers = {
        rank: -failure.exitcode
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.timestamp - first_s < FIRST_S
    }
    causes = {rank: number for rank, number in numbers.items() if number != signal.SIGTERM}
    is_ended_from_outside = len(numbers) == len(failures)
    for rank, number in (causes or (numbers if is_ended_from_outside else {})).items():
        if told:
            heartbeat.write_end(Path(told), heartbeat.killed(rank, number, Path(told)))


if __name__ == "__main__":
    sys.exit(main())
