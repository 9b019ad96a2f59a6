"""Which process of a run sits on which device and processors."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from swiftlet.config.args import AUTO
from swiftlet.device.affinity import Binding, apply, as_text, bind
from swiftlet.device.cards import Cards, Chip, Finding, check_cards, chips_of, look_at_cards
from swiftlet.device.nvidia_smi import Gpu, look_at_gpus
from swiftlet.device.topology import PCI, cpus_beside, each_of
from swiftlet.device.visible import ASCEND, CUDA, NUMBER, PROCESSES, processes_per_node, visible_ids


class Seat(NamedTuple):
    """One process: the place of its device among all of the machine, and its processors."""

    local_rank: int
    device: int
    binding: Binding


def local_rank_of(environ: Mapping[str, str]) -> int:
    """Return the number of this process on its machine."""
    return int(environ.get("LOCAL_RANK", "0"))


def chosen(variable: str, environ: Mapping[str, str], total: int) -> list[int]:
    """Return the logical numbers of the devices that a run may use, in the order of its processes."""
    ids = visible_ids(variable, environ)
    if ids is None:
        return list(range(total))
    return [int(one) for one in ids if NUMBER.fullmatch(one) and int(one) < total]


def check_devices(kind: str, environ: Mapping[str, str]) -> list[Finding]:
    """Return the busy and unhealthy devices among those that a run started here will use; before a model is loaded.

    Args:
        kind: as --device says it.
    """
    if kind not in (AUTO, "npu"):
        return []
    processes = int(environ.get(PROCESSES) or processes_per_node(environ))
    ids = visible_ids(ASCEND, environ)
    used = range(processes) if ids is None else [int(one) for one in ids[:processes] if NUMBER.fullmatch(one)]
    return check_cards(used, environ)


def seats(
    devices: Sequence[int], near: Mapping[int, Collection[int]], allowed: Collection[int]
) -> list[Seat]:
    """Return where each process of a run sits, one a device."""
    return [Seat(rank, device, bind(rank, devices, near, allowed)) for rank, device in enumerate(devices)]


def near_of(chips: Sequence[Chip]) -> dict[int, list[int]]:
    """Return the processors next to each NPU by its logical number."""
    return {chip.logical: chip.cpus for chip in chips}


def near_gpus(gpus: Sequence[Gpu], folder: Path = PCI) -> dict[int, list[int]]:
    """Return the processors next to each GPU, as the kernel knows them by its PCI address."""
    # nvidia-smi writes the domain with eight digits, the kernel with four.
    return {gpu.number: each_of(cpus_beside(gpu.bus_id[-12:], folder)) for gpu in gpus}


def _near_devices(kind: str, environ: Mapping[str, str]) -> tuple[dict[int, list[int]], str]:
    if kind == "npu":
        cards = look_at_cards(environ) or Cards()
        return near_of(chips_of(cards)), ASCEND
    if kind == "cuda":
        return near_gpus(look_at_gpus(environ)[0]), CUDA
    return {}, ""


def find_seat(
    kind: str, local_rank: int, processes: int, environ: Mapping[str, str], allowed: Collection[int]
) -> Binding:
    """Return the processors of one process of this machine.

    Args:
        kind: of its device.
        processes: how many processes of the run there are on this machine.
        allowed: processors that this process may use.
    """
    near, variable = _near_devices(kind, environ)
    devices = chosen(variable, environ, len(near))[:processes]
    if len(devices) < processes:  # ids of another form, or nothing is known of the devices
        devices, near = list(range(processes)), {}
    return bind(local_rank, devices, near, allowed)


def bind_process(kind: str, local_rank: int, processes: int, environ: Mapping[str, str]) -> list[str]:
    """Bind this process to the processors next to its device and return the lines for the log.

    A process alone on a CPU has nothing to share and is left as it is.
    """
    if kind == "cpu" and processes == 1:
        return []
    binding = find_seat(kind, local_rank, processes, environ, os.sched_getaffinity(0))
    if not binding.cpus:
        return [f"process {local_rank}: {binding.reason}"]
    failure = apply(binding.cpus)
    return [failure or f"process {local_rank} runs on processors {as_text(binding.cpus)}: {binding.reason}"]
