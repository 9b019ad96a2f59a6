"""Imports and loading without the collector of cycles, which walks all objects made so far again and again.

Modules and models live as long as the process: what is there afterwards is never walked again.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Import or load in this block; what has become garbage in it is freed at its end."""
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)  # extensions call what is left at the end a leak
        gc.enable()
