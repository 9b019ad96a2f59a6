"""Copies from the host to a device that nothing waits for."""

from __future__ import annotations

import torch

WITHOUT_QUEUE = ("cpu", "meta")


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a CPU tensor on `device`; the host does not wait for what the device is still doing.

    A plain copy of pageable memory waits for the whole queue of the device. Sources: torch's notes on pinned memory;
    torch_npu's copy between host and device, which synchronises its stream unless it is asked not to block.
    """
    if torch.device(device).type in WITHOUT_QUEUE or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
