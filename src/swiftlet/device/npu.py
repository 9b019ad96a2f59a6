"""Ascend NPUs through torch_npu, which is imported here, on purpose, and nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from swiftlet.device.machine import Machine
from swiftlet.device.spec import Build, Device, DeviceError, Sight, calls_of, dtypes_of
from swiftlet.device.visible import ASCEND

SET_ENV = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
INSTALL = "pip install torch-npu decorator"


class _Import(NamedTuple):
    reason: str
    hint: str


@lru_cache(maxsize=1)
def import_torch_npu() -> _Import | None:
    """Import torch_npu and return None, or why it cannot be imported and what to type."""
    if importlib.util.find_spec("torch_npu") is None:
        return _Import("torch_npu is not installed", INSTALL)
    try:
        import torch_npu  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return _explain(str(error))
    return None


def _explain(text: str) -> _Import:
    first = text.strip().splitlines()[0] if text.strip() else "no reason was given"
    reason = f"torch_npu cannot be imported: {first}"
    if "cannot open shared object file" in text:
        return _Import(f"{reason}; the libraries of CANN are not on the search path", SET_ENV)
    if "undefined symbol" in text:
        return _Import(f"{reason}; torch, torch_npu and CANN do not belong together", "swift doctor")
    if "No module named" in text:
        return _Import(reason, "pip install " + text.rsplit("No module named", 1)[1].split()[0].strip("'\""))
    return _Import(reason, "swift doctor")


def _number(npus: int | None) -> str:
    return f"{npus} NPUs" if npus and npus > 1 else "one NPU" if npus else "no NPU"


def see(environ: Mapping[str, str], machine: Machine) -> Sight:
    """Return how many NPUs torch sees, or why it sees none."""
    is_expected = machine.has_npus or ASCEND in environ
    cause = import_torch_npu()
    shown = (
        f"{ASCEND}={environ[ASCEND]}" if ASCEND in environ else f"this machine shows {_number(machine.npus)}"
    )
    joint = ", but" if is_expected else ", and"
    if cause is not None:
        is_odd = importlib.util.find_spec("torch_npu") is not None
        return Sight(0, f"{shown}{joint} {cause.reason}", f"type {cause.hint}", is_expected, is_odd)
    if ASCEND in environ and not environ[ASCEND].strip():
        return Sight(0, f"{ASCEND} is set but empty, which hides every NPU", f"type unset {ASCEND}", True)
    count = _count()
    if count:
        return Sight(count)
    return Sight(0, f"{shown}{joint} torch_npu sees none", "type swift doctor", is_expected)


def _npu() -> Any:
    import torch_npu

    return torch_npu.npu


def _count() -> int:
    return int(_npu().device_count()) if _npu().is_available() else 0


def _fused_adamw(groups: list[dict[str, Any]], settings: Any) -> torch.optim.Optimizer:
    """Return AdamW with one kernel a parameter (aclnnApplyAdamWV2), which takes bf16 too.

    NpuFusedAdamW does not: it refuses bf16, and gathers gradients into tensors of its own, whereas those of an engine
    are views of one tensor already. Source: torch_npu's optim/npu_fused_optim_base.py.
    """
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon, fused=True)


OPTIMIZERS: dict[str, Build] = {"adamw_torch_npu_fused": _fused_adamw}


def _check_autograd(device: torch.device) -> None:
    """Raise DeviceError where torch started its threads for gradients before it knew of NPUs: it never adds one.

    No kernel is launched: a view's gradient is a view.
    """
    x = torch.empty(1, device=device, requires_grad=True)
    try:
        torch.autograd.grad(x.view(1, 1), x, torch.empty(1, 1, device=device))
    except RuntimeError as error:
        if "device_ready_queues_" not in str(error):
            raise
        raise DeviceError(
            "this process computed gradients before torch_npu was imported, so that torch has no thread for NPUs",
            "start another process, or put import torch_npu before the first run of this one",
        ) from error


def open_this(local_rank: int) -> Device:
    """Make NPU `local_rank` of the visible ones current and return it.

    Raises:
        DeviceError: torch can no longer compute gradients on NPUs in this process.
    """
    import torch_npu

    from swiftlet.device.npu_kernels import NPU_KERNELS

    npu = _npu()
    npu.set_device(local_rank)
    _check_autograd(torch.device("npu", local_rank))
    has_bf16 = bool(npu.is_bf16_supported())
    return Device(
        kind="npu",
        index=local_rank,
        name=str(npu.get_device_name(local_rank)),
        torch_device=torch.device("npu", local_rank),
        backend="hccl",
        default_dtype="bf16" if has_bf16 else "fp32",
        dtypes=dtypes_of(has_bf16=has_bf16),
        **calls_of(npu, local_rank),
        optimizers=OPTIMIZERS,
        kernels=NPU_KERNELS,
        can_overlap_between_nodes=False,
        version=f"torch {torch.__version__}, torch_npu {torch_npu.__version__}",
    )
