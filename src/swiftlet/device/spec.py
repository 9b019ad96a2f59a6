"""The table of devices: what a run needs to know of the one it sits on, and which one that is.

A device is never chosen silently: where something points at an accelerator that torch cannot see, the run ends with
the reason unless it was started with --device cpu.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from swiftlet.config.args import AUTO
from swiftlet.device.kernels import Kernel
from swiftlet.device.machine import Machine, look_at_machine
from swiftlet.device.settings import apply_settings, environment
from swiftlet.errors import SwiftletError, UsageError, pick
from swiftlet.log import warning

__all__ = ["Device", "DeviceError", "apply_settings", "choose", "environment", "open_device", "resolve_dtype"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
Build = Callable[[list[dict[str, Any]], Any], torch.optim.Optimizer]


class DeviceError(SwiftletError):
    """The device that was asked for, or that this machine has, cannot be used."""


def calls_of(library: Any, index: int) -> dict[str, Any]:
    """Return the calls of a `Device` that is an accelerator, whose library has torch's own names for them."""
    return {
        "peak_memory_bytes": lambda: int(library.max_memory_allocated(index)),
        "peak_reserved_bytes": lambda: int(library.max_memory_reserved(index)),
        "reset_peak_memory": lambda: library.reset_peak_memory_stats(index),
        "memory": lambda: library.mem_get_info(index),
        "synchronize": lambda: library.synchronize(index),
        "empty_cache": library.empty_cache,
    }


def dtypes_of(*, has_bf16: bool) -> frozenset[str]:
    """Return the types that an accelerator multiplies, by the names of --dtype."""
    return frozenset(DTYPES) if has_bf16 else frozenset(DTYPES) - {"bf16"}


@dataclass(frozen=True)
class Device:
    """One device of this process, and the facts by which runs on it differ; sizes in bytes.

    Args:
        peak_memory_bytes: the most memory in use since the last reset; on a CPU the growth of the resident set.
        reset_peak_memory: start counting the peak afresh.
        memory: (free, total).
        synchronize: wait until everything that was started is done.
        empty_cache: give cached memory back.
        peak_reserved_bytes: the most that the allocator held since the last reset; 0 where there is no such allocator.
    """

    kind: str
    index: int
    name: str
    torch_device: torch.device
    backend: str
    default_dtype: str
    peak_memory_bytes: Callable[[], int]
    reset_peak_memory: Callable[[], None]
    memory: Callable[[], tuple[int, int]]
    synchronize: Callable[[], None] = lambda: None
    empty_cache: Callable[[], None] = lambda: None
    peak_reserved_bytes: Callable[[], int] = lambda: 0
    dtypes: frozenset[str] = frozenset(DTYPES)
    optimizers: Mapping[str, Build] = field(default_factory=dict)
    kernels: Mapping[str, Kernel] = field(default_factory=dict)  # fused operators; what is missing is plain
    kernel_errors: tuple[type[Exception], ...] = ()  # what a fused operator fails with, beside Python's own
    # Records some work without doing it: returns what does it, and what the work gave. None where nothing records.
    capture: Capture | None = None
    version: str = ""
    # Whether collectives between nodes may run beside the computation without spoiling values.
    can_overlap_between_nodes: bool = True


class Sight(NamedTuple):
    """How many devices of a kind torch sees; where none, the reason and what to type."""

    number: int
    reason: str = ""
    hint: str = ""
    is_expected: bool = False  # something on this machine says that there should be some
    is_odd: bool = False  # worth a line of the log although nothing asked for one


MODULES = {name: f"swiftlet.device.{name}" for name in ("npu", "cuda", "cpu")}


def _module(kind: str) -> Any:
    return importlib.import_module(pick(MODULES, kind, "--device"))


def see(kind: str, environ: Mapping[str, str], machine: Machine | None = None) -> Sight:
    """Return how many devices of this kind torch sees, or why it sees none."""
    sight: Sight = _module(kind).see(environ, machine or look_at_machine(environ))
    return sight


def choose(environ: Mapping[str, str], machine: Machine | None = None) -> str:
    """Return the kind of device of this machine: an NPU, else a GPU, else the CPU.

    Raises:
        DeviceError: something says that there is an accelerator, but torch sees none.
    """
    machine = machine or look_at_machine(environ)
    missing: list[Sight] = []
    for kind in ("npu", "cuda"):
        sight = see(kind, environ, machine)
        if sight.number:
            return kind
        missing.append(sight)
    for sight in missing:
        if sight.is_expected:
            raise DeviceError(sight.reason, f"{sight.hint}; or add --device cpu to run without it")
    for sight in missing:
        if sight.is_odd:
            warning(f"running on the CPU: {sight.reason}")
    return "cpu"


def open_device(kind: str, *, local_rank: int = 0, environ: Mapping[str, str]) -> Device:
    """Make the device of this process current and return it.

    Args:
        kind: npu, cuda or cpu, or AUTO for the best that this machine has.
        local_rank: number of this process on its machine; it takes the device of the same number.

    Raises:
        DeviceError: there is no such device here, with the reason.
    """
    machine = Machine() if kind == "cpu" else look_at_machine(environ)  # may wait for the driver's program
    kind = choose(environ, machine) if kind == AUTO else kind
    sight = see(kind, environ, machine)
    if not sight.number:
        raise DeviceError(sight.reason, sight.hint)
    if kind != "cpu" and local_rank >= sight.number:
        has = f"{sight.number} device{'s are' if sight.number > 1 else ' is'} visible"
        raise DeviceError(
            f"process {local_rank} of this machine has no device: {has}",
            f"type NPROC_PER_NODE={sight.number}",
        )
    device: Device = _module(kind).open_this(local_rank)
    return device


def resolve_dtype(asked: str, device: Device) -> torch.dtype:
    """Return the type of weights and activations; AUTO is the device's own choice, and never fp16.

    Raises:
        UsageError: the device does not have the type that was asked for.
    """
    name = device.default_dtype if asked == AUTO else asked
    dtype = pick(DTYPES, name, "--dtype")
    if name not in device.dtypes:
        has = ", ".join(sorted(device.dtypes))
        raise UsageError(
            f"{device.name} does not have {name}; it has {has}", f"type --dtype {device.default_dtype}"
        )
    if name == "bf16" and device.kind == "cpu" and device.default_dtype != "bf16":
        warning(f"{device.name} has no bf16 instructions: bf16 is slower than fp32 here")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type as --dtype takes it."""
    return next(name for name, known in DTYPES.items() if known == dtype)
