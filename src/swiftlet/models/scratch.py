"""Memory for tensors that live within one operator on a CPU, kept from one use to the next.

glibc looks for an aligned block in holes that are larger by the alignment, so a freed tensor leaves a hole that none of
the same size finds: temporary tensors between those that are kept for the backward pass would cost as much memory as if
they were kept too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class _Blocks(threading.local):
    """One block for each type; a thread has its own."""

    def __init__(self) -> None:
        self.found: dict[torch.dtype, Tensor] = {}


_blocks = _Blocks()


def scratch(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a tensor of any content, valid until the next one of this type in this thread.

    On other devices than a CPU, and for tensors without memory (of a trace), it is a tensor of its own.
    """
    if like.device.type != "cpu" or type(like) is not Tensor:
        return like.new_empty(shape)
    size = torch.Size(shape).numel()
    block = _blocks.found.get(like.dtype)
    if block is None or block.numel() < size:
        _blocks.found.pop(like.dtype, None)
        block = _blocks.found[like.dtype] = like.new_empty(size + size // 8)
    return block[:size].view(shape)
