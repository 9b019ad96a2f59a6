"""The device of this process of a run: opened, set up, and bound to the processors next to it; each is said."""

from __future__ import annotations

import os

from swiftlet import log
from swiftlet.device.placement import bind_process, local_rank_of
from swiftlet.device.settings import apply_settings
from swiftlet.device.spec import Device, open_device
from swiftlet.parallel.world import World


def open_own_device(kind: str, *, deterministic: bool = False) -> Device:
    """Return the device of this process.

    Args:
        kind: as --device says it.

    Raises:
        DeviceError: there is no such device here.
    """
    device = open_device(kind, local_rank=local_rank_of(os.environ), environ=os.environ)
    for line in apply_settings(device, deterministic=deterministic):
        log.info(line)
    return device


def bind_to_device(device: Device, world: World) -> None:
    """Keep this process on the processors next to its device; the run says how many share them."""
    local_rank = local_rank_of(os.environ)
    # A cluster may number processes that have a machine of their own each.
    processes = max(world.local_world_size, local_rank + 1)
    for line in bind_process(device.kind, local_rank, processes, os.environ):
        log.info(line)
