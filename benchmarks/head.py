"""The head and its cross entropy by the rows of a chunk of logits: milliseconds forward and backward, median.

python benchmarks/head.py --shapes 1377x128x8192 1277x576x49152 1377x1024x32000 --rows 128 256 512 1024

A shape is POSITIONSxHIDDENxVOCABULARY; the head is frozen. Sizes take turns, so that their ratios hold on a busy
machine. How many rows a run takes: `chunk_rows` of models/cross_entropy.py.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from report import markdown
from torch import nn

from swiftlet.models import cross_entropy


def seconds(shape: str, rows: list[int], repeats: int) -> dict[int, float]:
    """Return the median seconds for each number of rows."""
    positions, hidden, vocabulary = map(int, shape.split("x"))
    module = nn.Linear(hidden, vocabulary, bias=False).requires_grad_(False)
    states_NH = torch.randn(positions, hidden, requires_grad=True)
    targets_N = torch.randint(0, vocabulary, (positions,))
    head = cross_entropy.Head(module)
    found: dict[int, list[float]] = {number: [] for number in rows}
    for _ in range(repeats + 1):
        for number in random.sample(rows, len(rows)):
            cross_entropy.HOST_ROWS, cross_entropy.CHUNK_BYTES = number, 1
            start = time.perf_counter()
            cross_entropy.linear_cross_entropy(states_NH, targets_N, head)[0].backward()
            found[number].append(time.perf_counter() - start)
    return {number: statistics.median(times[1:]) for number, times in found.items()}  # the first warms up


def main() -> None:
    """Measure every shape and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["1377x128x8192", "1277x576x49152", "1377x1024x32000"])
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = []
    for shape in options.shapes:
        found = seconds(shape, options.rows, options.repeats)
        lines.append([shape, *(f"{found[number] * 1e3:.0f}" for number in options.rows)])
    print(markdown(["shape", *(f"{number} rows" for number in options.rows)], lines))


if __name__ == "__main__":
    main()
