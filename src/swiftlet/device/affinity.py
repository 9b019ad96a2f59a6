"""Which processors a process of a run stays on: those next to its device, shared with no other device.

The split is by the devices of the machine, not by the processes of one run, so that two runs on different devices
never meet on a processor either. Pure functions, but for `apply`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TASKS = Path("/proc/self/task")


class Binding(NamedTuple):
    """The processors of one process, none for no binding, and how they were chosen."""

    cpus: list[int]
    reason: str


def intervals(cpus: Collection[int]) -> list[list[int]]:
    """Return the processors as runs of neighbours, each a sorted list."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return runs


def as_text(cpus: Collection[int]) -> str:
    """Return the processors as the kernel writes them: 0-63,128-191."""
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in intervals(cpus))


def slices(cpus: Sequence[int], number: int) -> list[list[int]]:
    """Return `number` neighbouring slices that differ in size by one at most."""
    ends = [len(cpus) * at // number for at in range(number + 1)]
    return [list(cpus[start:end]) for start, end in zip(ends, ends[1:], strict=False)]


def shares(cpus: Collection[int], number: int) -> list[list[int]]:
    """Return `number` disjoint shares; each run of neighbours is cut by itself.

    Threads of one core stand in different runs (0-63,128-191), so cutting each keeps a core with one device.
    """
    runs = intervals(cpus)
    if any(len(run) < number for run in runs):
        return slices(sorted(set(cpus)), number)
    cut = [slices(run, number) for run in runs]
    return [[cpu for run in cut for cpu in run[at]] for at in range(number)]


def divide(near: Mapping[int, Collection[int]], allowed: Collection[int]) -> dict[int, list[int]]:
    """Return the processors of each device: those next to it that this process may use, shared out among neighbours.

    Args:
        near: processors next to each device of the machine; ranges may be equal, overlap or be empty.
        allowed: processors that the control group and the starter of this process leave.
    """
    may = set(allowed)
    owners: dict[int, tuple[int, ...]] = {}
    for device in sorted(near):
        for cpu in set(near[device]) & may:
            owners[cpu] = (*owners.get(cpu, ()), device)
    groups: dict[tuple[int, ...], list[int]] = {}
    for cpu, devices in owners.items():
        groups.setdefault(devices, []).append(cpu)
    result: dict[int, list[int]] = {device: [] for device in near}
    for devices, cpus in groups.items():
        for device, share in zip(devices, shares(cpus, len(devices)), strict=True):
            result[device] += share
    return {device: sorted(cpus) for device, cpus in result.items()}


def bind(
    local_rank: int, devices: Sequence[int], near: Mapping[int, Collection[int]], allowed: Collection[int]
) -> Binding:
    """Return the processors of process `local_rank`.

    Args:
        devices: the physical number of the device of each process of this machine, in the order of local ranks.
        near: processors next to each device of the machine, by physical number; a device may be missing.
        allowed: processors that this process may use.
    """
    divided = divide(near, allowed)
    if all(divided.get(device) for device in devices):
        cpus = divided[devices[local_rank]]
        return Binding(cpus, f"the processors next to device {devices[local_rank]}")
    known = sorted(set(near) | set(devices))
    if len(set(allowed)) < len(known):
        known = sorted(set(devices))
    why = "no processors next to the devices are known"
    if any(near.get(device) for device in devices):
        why = "the processors next to the devices are not among those that this process may use"
    if len(set(allowed)) < len(known):
        return Binding([], f"{why}, and {len(set(allowed))} are too few to share: not bound")
    share = shares(allowed, len(known))[known.index(devices[local_rank])]
    return Binding(share, f"{why}: an even share")


def apply(cpus: Collection[int]) -> str:
    """Bind every thread of this process; return why it could not be done, empty when it was.

    Source: sched_setaffinity(2): it binds one thread, and threads started later inherit it.
    """
    try:
        for task in TASKS.iterdir():
            with suppress(ProcessLookupError):  # a thread that ended meanwhile
                os.sched_setaffinity(int(task.name), set(cpus))
    except OSError as error:
        return f"the system refuses to bind this process to {as_text(cpus)}: {error.strerror}"
    return ""
