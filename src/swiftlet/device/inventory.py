"""Which device a run on this machine will most likely sit on, and how large it is. Without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from swiftlet.config.args import AUTO
from swiftlet.device.cards import chips_of, look_at_cards
from swiftlet.device.nvidia_smi import look_at_gpus
from swiftlet.device.settings import guess_kind
from swiftlet.device.visible import ASCEND, CUDA, visible_ids

GIB = 2**30
T = TypeVar("T")
# Of a container, by the second version of cgroups and by the first.
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
CPUINFO = Path("/proc/cpuinfo")
# x86: the two sets with bf16 products; ARM: the bf16 extension, also as SVE's.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
ASSUMED = "910B3"


class Found(NamedTuple):
    """A device: its name as its driver writes it (empty for the processor), and its memory [GiB].

    `note` says how it was found.
    """

    name: str
    total_gib: float | None
    note: str


def cpu_flags(text: str) -> frozenset[str]:
    """Return the instruction sets in the text of /proc/cpuinfo, of x86 or ARM."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def cpu_has_native_bf16(text: str | None = None) -> bool:
    """Return whether the CPU multiplies bf16 itself; without that bf16 is slower than fp32."""
    if text is None:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    return bool(cpu_flags(text) & BF16_FLAGS)


def first_number(paths: tuple[Path, ...]) -> int | None:
    """Return the number in the first of these files that holds one."""
    texts = (path.read_text(encoding="ascii").strip() for path in paths if path.is_file())
    return next((int(text) for text in texts if text.isdigit()), None)


def host_memory_gib() -> float:
    """Return the memory of this machine, or of the container where that is less [GiB]."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, first_number(CGROUP_LIMITS) or total) / GIB


def find_device(kind: str, environ: Mapping[str, str]) -> Found:
    """Return the device of this machine of a kind (AUTO: the likeliest).

    Where the command line names NPUs and this machine has none, it is planned for one of the common ones.
    """
    kind = guess_kind(environ) if kind == AUTO and ASCEND not in environ else kind
    if kind in (AUTO, "npu"):
        seen = look_at_cards(environ, with_topology=False)
        chips = chips_of(seen) if seen is not None else []
        if chips:
            card = _first(ASCEND, environ, {chip.logical: chip.card for chip in chips})
            return Found(card.name or ASSUMED, _gib(card.total_mb), "npu-smi")
        return Found(ASSUMED, None, f"no NPU is seen here: {ASSUMED} is assumed, --device says otherwise")
    if kind == "cuda":
        gpus, _ = look_at_gpus(environ)
        if gpus:
            gpu = _first(CUDA, environ, {gpu.number: gpu for gpu in gpus})
            return Found(gpu.name, _gib(gpu.total_mb), "nvidia-smi")
        return Found("A100-80G", None, "no GPU is seen here: A100-80G is assumed, --device says otherwise")
    return Found("", host_memory_gib(), "this machine's processor")


def _first(name: str, environ: Mapping[str, str], devices: Mapping[int, T]) -> T:
    """Return the first device that a variable names, the first of all where it names none of them."""
    named = [int(text) for text in visible_ids(name, environ) or () if text.isdecimal()]
    return devices[next((number for number in named if number in devices), min(devices))]


def _gib(megabytes: int | None) -> float | None:
    return megabytes / 1024 if megabytes else None
