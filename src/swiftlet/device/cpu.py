"""The CPU as a device: memory is the growth of this process's resident set."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from swiftlet.device.inventory import CGROUP_LIMITS, cpu_has_native_bf16, first_number
from swiftlet.device.machine import Machine
from swiftlet.device.spec import Device, Sight

PROC = Path("/proc")
CGROUP_USE = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def cpu_name() -> str:
    """Return the model name of the CPU."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read(PROC / "cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else f"{platform.machine()} CPU"


def _status_bytes(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", _read(PROC / "self" / "status"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


class ResidentSet:
    """The largest growth of this process's resident set, in bytes.

    Source: proc(5): VmRSS and VmHWM in status; writing 5 to clear_refs sets VmHWM back to VmRSS.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from what is resident now; where the kernel forbids it, the peak of before stays."""
        self.start = _status_bytes("VmRSS")
        refs = PROC / "self" / "clear_refs"
        if refs.exists():
            try:
                refs.write_text("5")
            except OSError:
                self.start = max(self.start, _status_bytes("VmHWM"))

    def peak(self) -> int:
        """Return the bytes by which the resident set has grown at most."""
        return max(0, _status_bytes("VmHWM") - self.start)


def cpu_memory() -> tuple[int, int]:
    """Return (free, total) bytes of memory: the machine's, or the container's where that is less."""
    sizes = dict(re.findall(r"^(\w+):\s*(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE))
    total, free = int(sizes.get("MemTotal", 0)) * 1024, int(sizes.get("MemAvailable", 0)) * 1024
    limit, used = first_number(CGROUP_LIMITS), first_number(CGROUP_USE)
    if limit is not None and 0 < limit < total:
        total, free = limit, min(free, max(0, limit - (used or 0)))
    return free, total


def see(environ: Mapping[str, str], machine: Machine) -> Sight:
    """Return the one CPU there is."""
    return Sight(1)


def open_this(local_rank: int) -> Device:
    """Return the CPU; every process of a machine shares it."""
    resident = ResidentSet()
    return Device(
        kind="cpu",
        index=0,
        name=cpu_name(),
        torch_device=torch.device("cpu"),
        backend="gloo",
        default_dtype="bf16" if cpu_has_native_bf16() else "fp32",
        peak_memory_bytes=resident.peak,
        reset_peak_memory=resident.reset,
        memory=cpu_memory,
        version=torch.__version__,
    )
