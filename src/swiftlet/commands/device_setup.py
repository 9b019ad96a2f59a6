"""The device of this process of a run: opened, bound to the processors next to it, and set up; each is said."""

from __future__ import annotations

import os

from swiftlet import log
from swiftlet.device.placement import bind_process, local_place
from swiftlet.device.settings import apply_settings
from swiftlet.device.spec import Device, open_device


def open_own_device(kind: str, *, is_bound: bool, deterministic: bool = False) -> Device:
    """Return the device of this process.

    Args:
        kind: as --device says it.
        is_bound: keep the process on the processors next to its device.

    Raises:
        DeviceError: there is no such device here.
    """
    local_rank, local_world_size = local_place(os.environ)
    device = open_device(kind, local_rank=local_rank, environ=os.environ)
    if is_bound:
        for line in bind_process(device.kind, local_rank, local_world_size, os.environ):
            log.info(line)
    for line in apply_settings(device, deterministic=deterministic):
        log.info(line)
    return device
