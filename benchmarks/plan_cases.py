"""The runs of plan_check.py: sizes of models, lengths, checkpointing, engines."""

from __future__ import annotations

import argparse
from itertools import product
from typing import NamedTuple

from swiftlet.models.geometry import Geometry
from swiftlet.plan.setting import FULL, LEVELS, NONE, PARTIAL
from swiftlet.plan.strategies import FLAGS

SIZES = {
    "10m": Geometry(256, 6, 4, 2, 704, 8000, tied=True, qkv_bias=True),
    "60m": Geometry(512, 8, 8, 4, 1376, 32000, qkv_bias=True),
    "500m": Geometry(896, 24, 14, 2, 4864, 151936, tied=True, qkv_bias=True),
}
LENGTHS = {"10m": (128, 512, 1024), "60m": (64, 128, 256), "500m": (16, 64, 256)}
LARGEST_FULL = 600e6  # parameters; more would need more memory than most machines have
SIZE_OF_ENGINES, TOKENS_OF_ENGINES = "60m", 256
NUM_TIMED, CASES_A_CALIBRATION = 3, 4


class Case(NamedTuple):
    """One run: two samples of half the tokens each, on every rank."""

    size: str
    sft_type: str
    tokens: int
    recompute: str
    world_size: int
    engine: str

    @property
    def name(self) -> str:
        """Return it as a line of the table."""
        more = {NONE: "", PARTIAL: " partial", FULL: " ckpt"}[self.recompute]
        engine = "ddp" if self.engine == "none" and self.world_size > 1 else self.engine
        return f"{self.size} {self.sft_type} {self.tokens}{more} x{self.world_size} {engine}"


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the grid of one rank, or that of the engines on two."""
    if options.engines is not None:
        return [
            Case(SIZE_OF_ENGINES, sft_type, TOKENS_OF_ENGINES, NONE, 2, engine)
            for engine, sft_type in product(options.engines or FLAGS, ("lora", "full"))
        ]
    found = [
        Case(size, sft_type, tokens, recompute, 1, "none")
        for size in options.sizes
        for sft_type, tokens, recompute in product(("lora", "full"), LENGTHS[size], LEVELS)
    ]
    return [c for c in found if c.sft_type == "lora" or SIZES[c.size].num_parameters < LARGEST_FULL]


def grouped(found: list[Case]) -> list[list[Case]]:
    """Return the cases that share a process: those of one rank and one model."""
    alone = [[case for case in found if case.world_size == 1 and case.size == size] for size in SIZES]
    return [*filter(None, alone), *([case] for case in found if case.world_size > 1)]
