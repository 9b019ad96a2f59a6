"""What the cases of the catalogue share: how often they are tried, and how a resumed run must end."""

from __future__ import annotations

import pytest
from harness import Runs

NUM_STEPS, SAVE_STEPS = 12, 4


def repeat(quick: int, full: int) -> list[object]:
    """Return the numbers of repetitions: the first ones in the default run, all of them in `make faults`."""
    return [*range(quick), *(pytest.param(number, marks=pytest.mark.slow) for number in range(quick, full))]


def check_golden(runs: Runs, golden: Runs, **options: object) -> None:
    """Start the run again with the same arguments and check that it ends like the golden one, in every byte."""
    done = runs.run(resume_from_checkpoint="auto", **options)
    assert done.code == 0, done.text
    mine, theirs = runs.hashes(NUM_STEPS), golden.hashes(NUM_STEPS)
    for name in ("sft_args.json", "MANIFEST.json") if options else ():  # they say what the options are
        del mine[name], theirs[name]
    assert mine == theirs
    assert runs.drafts() == []
