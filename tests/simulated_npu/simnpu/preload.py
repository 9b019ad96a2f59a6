"""Runs when a Python process starts with NPUSIM=1 (simnpu.pth): loads the stub's libraries before torch needs them.

It stays off where a real libascendcl is found, so that it can never hide true hardware. Settings and faults are in
README.md.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

LIBRARIES = Path(__file__).parent / "lib"
# libascendcl first: the others are linked to it, as torch_npu looks functions up in a library and what it needs.
NAMES = (
    "libascendcl.so",
    "libhcomm.so",
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
    "libruntime.so",
    "libascend_hal.so",
    "libmsprofiler.so",
    "libmspti.so",
    "libopapi.so",
)
started = False


def real_runtime() -> str | None:
    """Path or name of a libascendcl.so that is not ours, or None."""
    for variable in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        if variable in os.environ:
            path = Path(os.environ[variable]) / "lib64" / "libascendcl.so"
            if path.exists():
                return str(path)
    try:
        ctypes.CDLL("libascendcl.so")
    except OSError:
        return None
    return "libascendcl.so"


def missing() -> set[str]:
    """Names after `missing=` in NPUSIM_FAULT: a library of NAMES, or a variable that set_env.sh would set."""
    items = os.environ.get("NPUSIM_FAULT", "").split(";")
    return {item.removeprefix("missing=") for item in items if item.startswith("missing=")}


class AfterTorchNpu(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets `import torch_npu` run as it is and activates the simulation when it is done."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch_npu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(
            self
        )  # only now: find_spec also answers those who merely ask whether torch_npu is there
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        from simnpu import activate

        activate.activate()


def start() -> None:
    """Loads the stub and waits for torch_npu. Harmless when called twice: site may read a .pth file twice."""
    global started
    if started:
        return
    started = True
    found = real_runtime()
    if found:
        print(f"simnpu: stays off, there is a real {found}", file=sys.stderr)
        return
    absent = missing()
    for name in NAMES:
        if name not in absent:
            ctypes.CDLL(str(LIBRARIES / name), mode=ctypes.RTLD_GLOBAL)
    home = str(Path(__file__).parent / "cann")
    for variable in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH"):
        if variable in absent:
            os.environ.pop(variable, None)
        else:
            os.environ.setdefault(variable, home)
    sys.meta_path.insert(0, AfterTorchNpu())
