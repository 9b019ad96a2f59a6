"""Memory and time of the reference system's own step, beside what was published of it: the model's proof.

That step is another one than ours: a padded micro-batch of one sample, all logits in fp32 and three copies of them, and
an allocator that met lengths in random order. What it *reserves* is the weights and a multiple of its activations: 3.5
for rows of up to 2048 tokens (one constant, fitted to nine rows of an A100), less for longer ones, whose lengths repeat
less (two more constants). Full training reserves five times the weights (parameter, gradient, two moments and one
temporary copy of the unfused optimizer) and the activations once, whose segments the optimizer's step does not reuse.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from swiftlet.plan.cards import read_cards
from swiftlet.plan.memory import GIB, ZERO2_BUCKET, ZERO3_LIVE
from swiftlet.plan.setting import ATTENTION, FP32, Setting, num_adapter_parameters
from swiftlet.plan.sizes import Sizes

DATA = Path(__file__).parent
FRAGMENTATION = ((2048, 3.5), (4096, 2.65), (8192, 2.15))  # longest row -> reserved over needed activations
LOGITS_BYTES = 12  # a token and entry of the vocabulary: logits, their log-softmax and its gradient in fp32
HALF = 2
COPIES_FULL = 5
A100, REFERENCE_CARD = "A100-80G", "910B3"
ASCEND_TOKENS = 563  # longest row of blossom-math-zh
# Fitted to the published hours: kernels of a micro-batch (forward, again, backward) a layer, and gathers of ZeRO-3.
KERNELS_A_LAYER, GATHERS_A_LAYER, PASSES = 256, 7, 3
ASCEND_MICRO_BATCHES = 49500


class Row(NamedTuple):
    """A published row; figures are GiB (A100) or GB (Ascend) of one device."""

    model: str
    published: float
    details: dict[str, str]


def read_rows(name: str, column: str) -> list[Row]:
    """Return the rows of a data file; `column` holds the published figure."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [Row(row["model"], float(row[column]), row) for row in table]


def reference_activations(g: Sizes, tokens: int) -> float:
    """Return the bytes of the reference's activations with recomputing: logits, the layers' inputs, and some rows."""
    return tokens * (LOGITS_BYTES * g.vocab + HALF * g.hidden * (g.layers + 8))


def _adapters(g: Sizes, rank: int) -> float:
    setting = Setting(itemsize=HALF, tokens=1, rank=rank, targets=frozenset(ATTENTION[:3]))
    return 4 * FP32 * num_adapter_parameters(g, setting)  # parameter, gradient and two moments


def reserved_on_a100(g: Sizes, row: Row) -> float:
    """Return the GiB that the reference reserves for a row of the A100 table.

    It reserves no more than the card has: an allocator that gets nothing gives back what it kept, and tries again.
    """
    details = row.details
    tokens = int(details["max_length"]) * int(details["batch_size"])
    weights = HALF * g.num_parameters
    if details["sft_type"] == "full":
        wanted = COPIES_FULL * weights + reference_activations(g, tokens)
    else:
        wanted = weights + _adapters(g, int(details["rank"]))
        wanted += _multiple(int(details["max_length"])) * reference_activations(g, tokens)
    card = read_cards()[A100]
    return min(wanted / GIB, card.memory_gib - card.context_gib)


def _multiple(max_length: int) -> float:
    return next(multiple for length, multiple in FRAGMENTATION if max_length <= length)


def visible_on_ascend(g: Sizes, row: Row) -> float:
    """Return the GiB that npu-smi should have shown for a row of the Ascend table."""
    card = read_cards()[REFERENCE_CARD]
    ranks, engine = int(row.details["world_size"]), row.details["engine"]
    weights = HALF * g.num_parameters
    held = _adapters(g, 8) + _multiple(ASCEND_TOKENS) * reference_activations(g, ASCEND_TOKENS)
    if engine == "zero3":
        held += weights / ranks + min(g.num_parameters, ZERO3_LIVE) * HALF
    else:
        held += weights + (2 * ZERO2_BUCKET * HALF if engine == "zero2" else 0)
    fixed = card.idle_gib + card.context_gib + (card.communicator_gib if ranks > 1 else 0)
    return held / GIB + fixed


def hours_on_ascend(g: Sizes, row: Row) -> float:
    """Return the hours of five epochs: launching alone, and the gathers of ZeRO-3; nothing for ZeRO-2's hooks."""
    card = read_cards()[REFERENCE_CARD]
    seconds = g.layers * KERNELS_A_LAYER * card.launch_us * 1e-6
    if row.details["engine"] == "zero3":
        seconds += (g.layers * GATHERS_A_LAYER * PASSES + 4) * card.gather_ms * 1e-3
    return seconds * ASCEND_MICRO_BATCHES / int(row.details["world_size"]) / 3600
