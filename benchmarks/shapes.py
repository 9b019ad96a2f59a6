"""What new shapes cost: passes over micro-batches of one shape, of new shapes, and of new ones rounded to a multiple.

python benchmarks/shapes.py --sizes 2m 60m --dtypes bf16 fp32 --out docs/benchmarks/shapes.json

In bf16 a processor's products are compiled for their shape at its first use; see models/rounding.py.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import facts, markdown, parser_of, write
from stepping import DTYPES, IGNORE_INDEX, Setting, build_decoder
from workload import SIZES

LENGTH, TOKENS, LABELS, SPREAD = 185, 960, 448, 150
WARM = 2


def micro_batch(tokens: int, labels: int, vocabulary: int, random: np.random.Generator) -> tuple[Any, ...]:
    """Return so many tokens of samples of one length (and a shorter one), and so many labels."""
    ends = [*range(LENGTH, tokens, LENGTH), tokens]
    lengths = np.diff([0, *ends])
    targets_T = torch.full((tokens,), IGNORE_INDEX)
    targets_T[torch.from_numpy(random.permutation(tokens)[:labels])] = 7
    ids_T = torch.from_numpy(random.integers(3, vocabulary, tokens))
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    return ids_T, positions_T, [0, *ends], targets_T


def drawn(number: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Return numbers of tokens and labels."""
    tokens = random.integers(TOKENS - SPREAD, TOKENS + SPREAD, number)
    labels = random.integers(LABELS - SPREAD // 2, LABELS + SPREAD // 2, number)
    return list(zip(tokens.tolist(), labels.tolist(), strict=True))


def measure(setting: Setting, number: int) -> dict[str, float]:
    """Return microseconds a token by how the shapes come, without what rounds them by itself."""
    from swiftlet.models.causal import build_causal

    causal, random = build_causal(build_decoder(setting)).train(), np.random.default_rng(0)
    ways = {"one shape": ([(TOKENS, LABELS)] * number, 1), "new shapes": (drawn(number, random), 1)}
    ways["rounded, first"] = (drawn(number, random), causal.row_multiple)
    ways["rounded, later"] = (drawn(number, random), causal.row_multiple)
    found = {}
    for name, (shapes, multiple) in ways.items():
        causal.row_multiple, times = multiple, []
        for tokens, labels in shapes:
            batch = micro_batch(tokens, labels, setting.vocabulary, random)
            start = time.perf_counter()
            causal.zero_grad(set_to_none=True)
            causal(*batch, mask_seed=1).loss_sum.backward()
            times.append((time.perf_counter() - start) / tokens * 1e6)
        found[name] = statistics.median(times[WARM:])
    return found


def main() -> None:
    """Measure all sizes and types and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["2m", "60m"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--number", type=int, default=10, help="micro-batches of each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {
        f"{size} {dtype}": measure(Setting(SIZES[size], options.vocabulary, DTYPES[dtype]), options.number)
        for size in options.sizes
        for dtype in options.dtypes
    }
    ways = list(next(iter(found.values())))
    rows = [[name, *(f"{one[way]:.0f}" for way in ways)] for name, one in found.items()]
    print(markdown(["microseconds a token", *ways], rows))
    write(options.out, {"facts": facts(options), "found": found})


if __name__ == "__main__":
    main()
