"""torchrun, without its report of a failed process: the watchdog has the first cause and prints it once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun's command line; return 0, or 1 when a process of the run failed."""
    os.environ.setdefault("LOGLEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(list(sys.argv[1:] if argv is None else argv))
    except ChildFailedError:
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
