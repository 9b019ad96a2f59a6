"""One trajectory on any number of ranks and by any engine: a golden run on one process, and runs to compare with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "faults"):
    sys.path.insert(0, str(folder))

from harness import PRELOADED  # noqa: E402
from shapes import Shapes  # noqa: E402

PRELOADED += ["deepspeed", "deepspeed.runtime.zero.stage3", "swiftlet.parallel.fsdp"]


def pytest_collection_modifyitems(items):
    """Keep the tests of this folder in one worker: they share a server and golden runs."""
    for item in items:
        if Path(item.path).is_relative_to(HERE):
            item.add_marker(pytest.mark.xdist_group("invariance"))


@pytest.fixture(scope="session")
def shapes(model_folder, rows_file, tmp_path_factory) -> Shapes:
    """Runs of one model in any shape, each made once."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SWIFTLET_")}
    folder = tmp_path_factory.mktemp("invariance")
    environ = {
        **mine,
        "SWIFTLET_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    return Shapes(folder, model_folder, rows_file, environ)
