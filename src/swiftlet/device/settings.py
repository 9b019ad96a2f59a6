"""Settings of each device: variables that must be set before torch is imported, and calls after it.

Nothing here happens on import. A variable that the user has set is never changed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from swiftlet.config.args import AUTO
from swiftlet.device.machine import Machine, look_at_machine
from swiftlet.device.processors import quota_of_container, usable_processors

if TYPE_CHECKING:
    from swiftlet.device.spec import Device

HCCL_STEP_S = 68  # HCCL_EXEC_TIMEOUT is a multiple of it on the first 910. Source: CANN's list of variables
CONNECT_S = (120, 7200)  # the range of HCCL_CONNECT_TIMEOUT. Source: the same


def guess_kind(environ: Mapping[str, str], machine: Machine | None = None) -> str:
    """Return the kind of device that AUTO will most likely become, without importing torch."""
    machine = machine or look_at_machine(environ)
    if machine.has_npus:
        return "npu"
    if machine.has_gpus:
        return "cuda"
    # Simulated NPUs have no nodes.
    return "npu" if importlib.util.find_spec("torch_npu") is not None else "cpu"


def _npu_environment(timeout_s: int, deterministic: bool) -> dict[str, str]:
    """Return the variables of an NPU.

    Sources: torch_npu's documents (PYTORCH_NPU_ALLOC_CONF, TASK_QUEUE_ENABLE) and CANN's (HCCL_*).
    """
    values = {
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",  # long and short batches by turns would fragment memory
        "TASK_QUEUE_ENABLE": "2",  # the host prepares operators while the NPU works
        "HCCL_CONNECT_TIMEOUT": str(
            min(max(timeout_s, CONNECT_S[0]), CONNECT_S[1])
        ),  # ranks load models at their pace
        "HCCL_EXEC_TIMEOUT": str(-(-timeout_s // HCCL_STEP_S) * HCCL_STEP_S),
    }
    return values | ({"HCCL_DETERMINISTIC": "true"} if deterministic else {})


def _cuda_environment(timeout_s: int, deterministic: bool) -> dict[str, str]:
    """Return the variables of a GPU. Sources: torch's notes on CUDA and on reproducibility."""
    values = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return values | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if deterministic else {})


def _cpu_environment(timeout_s: int, deterministic: bool) -> dict[str, str]:
    """Return the variables of a CPU.

    Sources: the manual of libgomp, which torch uses; torch's alloc_cpu.cpp; oneDNN's guide on its primitive cache;
    ideep's lru_cache.hpp.
    """
    return {
        # Its threads wait for each other by spinning for milliseconds, which starves them where other programs run too.
        "GOMP_SPINCOUNT": "1000",
        # Huge pages for large tensors: new gradients of whole weights otherwise spend half of a step in page faults.
        "THP_MEM_ALLOC_ENABLE": "1",
        # Products of bf16 are compiled for their shape and kept, 1 024 of them in two caches, a gigabyte in all. As
        # many as a few micro-batches use are enough; the second cache has nothing that the first one lacks.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
        "LRU_CACHE_CAPACITY": "16",
    }


ENVIRONMENTS = {"npu": _npu_environment, "cuda": _cuda_environment, "cpu": _cpu_environment}
# Other names of a setting: where the user has set one, ours stays away.
OLDER_NAMES = {
    "PYTORCH_ALLOC_CONF": ("PYTORCH_CUDA_ALLOC_CONF",),
    "GOMP_SPINCOUNT": ("OMP_WAIT_POLICY",),
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": ("DNNL_PRIMITIVE_CACHE_CAPACITY",),
}


def environment(
    kind: str, environ: Mapping[str, str], *, timeout_s: int = 1800, deterministic: bool = False
) -> dict[str, str]:
    """Return the variables to add before torch is imported, here and in every process of the run.

    Args:
        kind: npu, cuda or cpu, or AUTO for what this machine looks like.
        timeout_s: longest wait in a collective.
    """
    kind = guess_kind(environ) if kind == AUTO else kind
    values = ENVIRONMENTS[kind](timeout_s, deterministic)
    # Torch imports its plugins by itself and fails with them; npu.py imports its own and explains.
    values["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    if quota_of_container() is not None:  # torch starts a thread for each processor that it sees
        values["OMP_NUM_THREADS"] = str(usable_processors())
    return {
        name: value
        for name, value in values.items()
        if name not in environ and not any(old in environ for old in OLDER_NAMES.get(name, ()))
    }


def apply_settings(device: Device, *, deterministic: bool = False) -> list[str]:
    """Set what is set by calls, on purpose and once, and return a line of the log for each.

    Args:
        deterministic: only operators that give the same bits in every run.
    """
    import torch

    lines = [f"device: {device.name} ({device.kind} {device.index}), collectives by {device.backend}"]
    if device.kind == "npu":
        lines += _apply_npu()
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        lines.append("only deterministic operators are used")
    return lines


def _apply_npu() -> list[str]:
    """Set what torch_npu keeps as options. Source: torch_npu's documents of set_compile_mode and npu.config."""
    import torch_npu

    npu = torch_npu.npu
    npu.set_compile_mode(jit_compile=False)
    npu.config.allow_internal_format = False
    return [
        "operators are taken ready-made, not compiled for each shape (jit_compile=False)",
        "tensors keep their plain layout (allow_internal_format=False)",
    ]
