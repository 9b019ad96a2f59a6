"""Dropout whose mask is a number: it is drawn once from torch's generator and made again in the backward pass.

On a CPU the mask comes from 16 random bits an element (numpy's SFC64), which is several times cheaper than torch's
bernoulli; the probability is the nearest multiple of 1 / 65536, and the scale follows from that exact value. On other
devices the device's own generator makes the mask from the same kind of number.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEVELS = 65536


def draw_seed() -> int:
    """Return a seed from torch's generator on the CPU; nothing waits for a device."""
    return int(torch.randint(2**62, ()))


def exact_probability(p: float) -> float:
    """Return the probability that `drop_` really uses."""
    return round(p * LEVELS) / LEVELS


def drop_(x: Tensor, p: float, seed: int) -> Tensor:
    """Set elements of `x` to zero in place, each with `exact_probability(p)`; nothing is scaled."""
    if x.device.type == "cpu":
        bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
        mask = torch.from_numpy(bits).view(x.shape) < round(p * LEVELS) - LEVELS // 2
    else:
        generator = torch.Generator(x.device).manual_seed(seed)
        mask = torch.rand(x.shape, device=x.device, generator=generator) < exact_probability(p)
    return x.masked_fill_(mask, 0)
