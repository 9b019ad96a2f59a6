"""What a command asks for that its kind of device, or this machine, cannot have: found before torch is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping

from swiftlet.config.args import AUTO
from swiftlet.device.machine import look_at_machine
from swiftlet.device.visible import ASCEND
from swiftlet.errors import UsageError

LIBRARY, INSTALL = "torch_npu", "pip install torch-npu decorator"
BACKENDS = {"npu": ("hccl", "gloo"), "cuda": ("nccl", "gloo"), "cpu": ("gloo",)}
OTHER_NODES = ("/dev/dxg", "/dev/kfd")  # GPUs of WSL, and of ROCm, which torch calls cuda too
OWN_OPTIMIZERS = {"adamw_torch_npu_fused": "npu"}


def impossible(
    kind: str, environ: Mapping[str, str], *, backend: str = AUTO, optim: str = ""
) -> Iterator[UsageError]:
    """Yield what cannot be: flags that do not go with --device, and a device asked for that is not here.

    Args:
        kind: as --device says it.
        backend: as --ddp_backend says it.
        optim: as --optim says it.
    """
    has = BACKENDS.get(kind)
    if has and backend != AUTO and backend not in has:
        yield UsageError(
            f"--ddp_backend {backend} does not go with --device {kind}, which has {' and '.join(has)}",
            f"leave it out, or type --ddp_backend {has[0]}",
        )
    if has and OWN_OPTIMIZERS.get(optim, kind) != kind:
        yield UsageError(f"--optim {optim} does not go with --device {kind}", "type --optim adamw_torch")
    if kind == "cuda" and not look_at_machine(environ).has_gpus and not any(map(os.path.exists, OTHER_NODES)):
        yield UsageError(
            "--device cuda, but this machine shows no GPU: there is no /dev/nvidia0",
            "type --device cpu; a container is given its GPUs by docker run --gpus all",
        )
    asked = _asks_for_npu(kind, environ, backend, optim)
    if asked and importlib.util.find_spec(LIBRARY) is None:
        yield UsageError(
            f"{asked}, but {LIBRARY} is not installed", f"type {INSTALL}; or --device cpu to run without it"
        )


def _asks_for_npu(kind: str, environ: Mapping[str, str], backend: str, optim: str) -> str:
    """Return what asks for an NPU; empty where nothing does, or where a GPU would be taken in its place."""
    if kind == "npu":
        return f"--device {kind}"
    if kind != AUTO:
        return ""
    if backend == "hccl":
        return f"--ddp_backend {backend} needs an NPU"
    if OWN_OPTIMIZERS.get(optim) == "npu":
        return f"--optim {optim} needs an NPU"
    is_only_one = ASCEND in environ and not look_at_machine(environ).has_gpus
    return f"{ASCEND}={environ[ASCEND]}" if is_only_one else ""
