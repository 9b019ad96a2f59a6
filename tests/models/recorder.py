"""A recorder of passes and an attention for it, on a processor."""

from __future__ import annotations

import torch

from swiftlet.device.kernels import DeviceAttention, DeviceBoundaries
from swiftlet.models.attention import segment_attention


def attend(query, key, value, cu_seqlens, rules):
    """Attend by boundaries that may be a tensor, as a device's operator does."""
    if isinstance(cu_seqlens, DeviceBoundaries):
        ends = cu_seqlens.on_device.tolist()
        assert max(b - a for a, b in zip(ends, ends[1:], strict=False)) <= cu_seqlens.longest
        cu_seqlens = sorted(set(ends))
    return segment_attention(query, key, value, cu_seqlens, rules)


ATTENTION = DeviceAttention(attend, lambda dtype, head_dim: head_dim < 512)


class Recorder:
    """What a device's recorder does, on a processor: playing does the work again and writes into the same memory."""

    def __init__(self):
        self.num_played = self.num_recorded = 0

    def __call__(self, work):
        self.num_recorded += 1
        places = work()

        def play():
            self.num_played += 1
            with torch.enable_grad():  # within a function's forward it is off, which no device asks
                values = work()
            for place, value in zip(places, values, strict=True):
                place.copy_(value)

        return play, places
