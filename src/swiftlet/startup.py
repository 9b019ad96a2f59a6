"""How Python starts here: processes that import nothing from the working folder, and imports without the collector.

The collector of cycles walks all objects made so far again and again. Modules and models live as long as the process:
what is there afterwards is never walked again.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = str(Path(__file__).parents[1])  # the folder that holds this package
# `python -m` looks for modules in the working folder first: a json.py among the user's data would run as ours.
START = (
    "import sys; sys.path[:] = [*filter(None, sys.path), {folder!r}]; import runpy; "
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)


def module_command(module: str) -> list[str]:
    """Return the words that start a module of ours as a process of its own, whatever lies in the working folder."""
    return [sys.executable, "-c", START.format(folder=PACKAGES, module=module)]


@contextmanager
def without_collector() -> Iterator[None]:
    """Import or load in this block; what has become garbage in it is freed at its end.

    What is left is not collected later either, until `freed_afterwards` ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)  # extensions call what is left at the end a leak
        gc.enable()


@contextmanager
def freed_afterwards() -> Iterator[None]:
    """Run in this block; at its end a model that nobody holds any more is freed: a notebook goes on to the next one.

    What was there before is not walked in it.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()
