"""A frozen head and its cross entropy by the block of logits: milliseconds forward and backward, median.

python benchmarks/head.py --shapes 487x192x8192 487x192x151936 1277x576x49152 --blocks 512x2048 512x4096 1024x16384

A shape is POSITIONSxHIDDENxVOCABULARY, a block ROWSxWORDS. Sizes take turns, so that their ratios hold on a busy
machine. What a run takes: ROWS and WORDS of models/frozen_head.py.
"""

from __future__ import annotations

import random
import statistics
import time

import torch
from report import markdown, parser_of
from torch import nn

from swiftlet.models import cross_entropy, frozen_head


def seconds(shape: str, blocks: list[str], repeats: int) -> dict[str, float]:
    """Return the median seconds for each block."""
    positions, hidden, vocabulary = map(int, shape.split("x"))
    module = nn.Linear(hidden, vocabulary, bias=False).requires_grad_(False)
    states_NH = torch.randn(positions, hidden, requires_grad=True)
    targets_N = torch.randint(0, vocabulary, (positions,))
    head = cross_entropy.Head(module)
    found: dict[str, list[float]] = {block: [] for block in blocks}
    for _ in range(repeats + 1):
        for block in random.sample(blocks, len(blocks)):
            frozen_head.ROWS, frozen_head.WORDS = map(int, block.split("x"))
            start = time.perf_counter()
            cross_entropy.linear_cross_entropy(states_NH, targets_N, head)[0].backward()
            found[block].append(time.perf_counter() - start)
    return {block: statistics.median(times[1:]) for block, times in found.items()}  # the first warms up


def main() -> None:
    """Measure every shape and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["487x192x8192", "487x192x151936", "1277x576x49152"])
    parser.add_argument("--blocks", nargs="+", default=["512x2048", "512x4096", "512x16384", "1024x4096"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = []
    for shape in options.shapes:
        found = seconds(shape, options.blocks, options.repeats)
        lines.append([shape, *(f"{found[block] * 1e3:.0f}" for block in options.blocks)])
    print(markdown(["shape", *options.blocks], lines))


if __name__ == "__main__":
    main()
