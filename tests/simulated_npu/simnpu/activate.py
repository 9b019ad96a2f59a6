"""Turns the simulation on in a process that has just imported torch_npu."""

from __future__ import annotations

import torch

from simnpu.preload import LIBRARIES


def activate() -> None:
    """Points aten operators at the CPU, then registers the fused operators."""
    torch.ops.load_library(str(LIBRARIES / "liboverride.so"))
    torch.ops.simnpu.install()
    from simnpu import fused

    fused.register()
