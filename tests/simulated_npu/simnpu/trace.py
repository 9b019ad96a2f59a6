"""Counts what a piece of code asks of the cards: operators, copies, and waits of the host."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from simnpu.preload import LIBRARIES

# Neither launches a kernel: a copy has a count of its own, and these only make a tensor.
NO_KERNELS = {"aten::copy_", "aten::detach", "aten::alias", "aten::view", "aten::_unsafe_view"}


@dataclass
class Trace:
    """Counts of one piece of code, filled in when it ends.

    Args:
        operators: launched operators by name; views and allocations, which launch nothing, are not among them.
        copies: "h2d", "d2h" and "d2d".
        waits: how often the host waited for a card: blocking copies, values read back, explicit synchronisation.
    """

    operators: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    waits: int = 0

    @property
    def launches(self) -> int:
        """Operators and copies together."""
        return sum(self.operators.values()) + sum(self.copies.values())


def synchronisations() -> int:
    """How often this process has waited for a card."""
    library = ctypes.CDLL(str(LIBRARIES / "libascendcl.so"))
    library.npusim_synchronisations.restype = ctypes.c_long
    return int(library.npusim_synchronisations())


@contextmanager
def trace() -> Iterator[Trace]:
    """Count within the `with` block, on all threads of this process; blocks do not nest."""
    found, before = Trace(), synchronisations()
    torch.ops.simnpu.counters()
    torch.ops.simnpu.set_counting(True)
    try:
        yield found
    finally:
        torch.ops.simnpu.set_counting(False)
        found.waits = synchronisations() - before
        for name, number in torch.ops.simnpu.counters().items():
            if name.startswith("copy:"):
                found.copies[name.removeprefix("copy:")] = number
            elif name not in NO_KERNELS:
                found.operators[name] = number
