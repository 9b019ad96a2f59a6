"""What a captured graph runs again of the kernels in Python, and the random numbers that they draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Where seed and offset lie, and how far the graph is when it draws: the tensors hold others at each run of a graph.
Seed = tuple[Tensor, Tensor, int]

library = torch.library.Library("simnpu", "IMPL")  # noqa: TOR901
numbers = itertools.count(1)
works: dict[int, Callable[[], None]] = {}
drawn: list[Seed] | None = None  # while a kernel is recorded: what it draws
given: Iterator[Seed] | None = None  # while it runs again: what it drew


def record(name: str, again: Callable[[], None]) -> None:
    """Adds to the graph that is captured; forgets what graphs that are gone have left."""
    number = next(numbers)
    works[number] = again
    for dropped in torch.ops.simnpu.record(number, name):
        del works[dropped]


def run(number: int) -> None:
    """Called by the runtime when a graph is executed."""
    works[number]()


library.impl("run_recorded", run, "CompositeImplicitAutograd")


@contextmanager
def drawing(seeds: list[Seed] | None = None) -> Iterator[list[Seed]]:
    """Within this, kernels draw from these seeds; where none are given, what they draw is collected."""
    global drawn, given
    before = drawn, given
    drawn, given = ([], None) if seeds is None else (None, iter(seeds))
    try:
        yield drawn if drawn is not None else seeds
    finally:
        drawn, given = before


def draw(device: torch.device, step: int) -> tuple[int, int]:
    """Seed and offset of a card's generator, which moves on by a multiple of four."""
    found = torch.ops.simnpu.draw(device, step) if given is None else next(given)
    if drawn is not None:
        drawn.append(found)
    seed, offset, intragraph = found
    return int(seed), int(offset) + intragraph
