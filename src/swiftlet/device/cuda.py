"""NVIDIA GPUs through torch.cuda."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from swiftlet.device.machine import Machine
from swiftlet.device.spec import Device, Sight, calls_of, dtypes_of
from swiftlet.device.visible import CUDA, is_hidden


def see(environ: Mapping[str, str], machine: Machine) -> Sight:
    """Return how many GPUs torch sees, or why it sees none."""
    if is_hidden(CUDA, environ.get(CUDA, "0")):
        return Sight(0, f"{CUDA}={environ[CUDA]} hides every GPU", f"unset {CUDA}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return Sight(count)
    is_expected = machine.has_gpus or CUDA in environ
    seen = f"{machine.gpus} NVIDIA devices" if machine.gpus else "no NVIDIA device"
    shown = f"{CUDA}={environ[CUDA]}" if CUDA in environ else f"this machine shows {seen}"
    joint = "but" if is_expected else "and"
    if torch.version.cuda is None:
        reason = f"{shown}, {joint} torch {torch.__version__} is built without CUDA"
        return Sight(0, reason, "install the CUDA build of torch: pip install torch", is_expected)
    reason = f"{shown}, {joint} torch {torch.__version__} for CUDA {torch.version.cuda} sees no GPU"
    return Sight(
        0, reason, "type nvidia-smi: it says whether the driver works and is new enough", is_expected
    )


def _capture(work: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
    graph = torch.cuda.CUDAGraph()
    # other threads, which load rows and write checkpoints, may do what a recording cannot hold
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph.replay, result


def _has_bf16(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)


def open_this(local_rank: int) -> Device:
    """Make GPU `local_rank` of the visible ones current and return it."""
    # It brings in torch's compiler: seconds that a CPU need not pay.
    from swiftlet.device.cuda_kernels import CUDA_KERNELS, KERNEL_ERRORS

    torch.cuda.set_device(local_rank)
    has_bf16 = _has_bf16(local_rank)
    return Device(
        kind="cuda",
        index=local_rank,
        name=torch.cuda.get_device_name(local_rank),
        torch_device=torch.device("cuda", local_rank),
        backend="nccl",
        default_dtype="bf16" if has_bf16 else "fp32",
        dtypes=dtypes_of(has_bf16=has_bf16),
        **calls_of(torch.cuda, local_rank),
        kernels=CUDA_KERNELS,
        kernel_errors=KERNEL_ERRORS,
        capture=partial(_capture, pool=torch.cuda.graph_pool_handle()),
        version=f"torch {torch.__version__}, CUDA {torch.version.cuda}",
    )
