"""Builds the stub libraries and the operator override with plain gcc, and installs simnpu.pth beside the package.

Objects are kept in build/native and compiled again only when a source is newer.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
OBJECTS = HERE / "build" / "native"
C_FLAGS = ["-std=gnu11", "-O1", "-fPIC", "-Wall", "-Werror", "-Wno-unused-parameter"]
CXX_FLAGS = ["-std=c++20", "-O1", "-fPIC"]
# Libraries that torch_npu asks the loader for; all that matters of these is that they exist and lead to libascendcl.
EMPTY_LIBRARIES = (
    "acl_op_compiler",
    "ge_runner",
    "graph",
    "acl_tdt_channel",
    "runtime",
    "ascend_hal",
    "msprofiler",
    "mspti",
)
RUNTIME = (
    "machine.c",
    "fault.c",
    "ascendcl.c",
    "streams.c",
    "graph.c",
    "sharing.c",
    "virtual.c",
    "limits.c",
    "profiling.c",
    "inert.c",
)


def package(name: str) -> Path:
    """Folder of an installed package, without importing it: torch_npu cannot be imported before the stub exists."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"simnpu needs {name}: pip install torch==2.13.0 torch-npu==2.13.0")
    return Path(found.submodule_search_locations[0])


def compiled(source: Path, compiler: list[str]) -> str:
    """Path of the object of one source."""
    target = OBJECTS / f"{source.name}.o"
    headers = HERE.glob("*/*.h")
    newest = max(path.stat().st_mtime for path in (source, Path(__file__), *headers))
    if not target.exists() or target.stat().st_mtime < newest:
        subprocess.run([*compiler, "-c", str(source), "-o", str(target)], check=True)
    return str(target)


def link(compiler: str, name: str, objects: list[str], folder: Path, *extra: str) -> None:
    """One shared library, which finds its neighbours in its own folder."""
    flags = ["-shared", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", f"-L{folder}"]
    subprocess.run([compiler, *flags, "-o", str(folder / name), *objects, *extra], check=True)


def build_stub(folder: Path) -> None:
    compiler = ["gcc", *C_FLAGS]
    stub = HERE / "stub"
    runtime = [compiled(stub / name, compiler) for name in RUNTIME]
    link(
        "gcc", "libascendcl.so", runtime, folder, "-lpthread", f"-Wl,--version-script={stub / 'ascendcl.map'}"
    )
    hccl = [compiled(stub / name, compiler) for name in ("comm.c", "reduce.c", "hccl.c", "transfer.c")]
    link(
        "gcc",
        "libhcomm.so",
        hccl,
        folder,
        "-lascendcl",
        "-lpthread",
        f"-Wl,--version-script={stub / 'hccl.map'}",
    )
    link(
        "gcc", "libhccl.so", [], folder, "-lhcomm"
    )  # that libhccl.so is missing must be seen when only it is
    link("gcc", "libopapi.so", [compiled(stub / "opapi.c", compiler)], folder, "-lascendcl")
    for name in EMPTY_LIBRARIES:
        link("gcc", f"lib{name}.so", [], folder, "-lascendcl")


def build_override(folder: Path) -> None:
    torch, torch_npu = package("torch"), package("torch_npu")
    include = torch_npu / "include"
    places = [
        torch / "include",
        torch / "include/torch/csrc/api/include",
        include,
        include / "third_party/acl/inc",
        include / "third_party/hccl/inc",
    ]
    compiler = ["g++", *CXX_FLAGS, *(f"-I{place}" for place in places)]
    objects = [
        compiled(HERE / "src" / name, compiler) for name in ("fallback.cpp", "graph.cpp", "install.cpp")
    ]
    libraries = [
        f"-L{torch / 'lib'}",
        f"-L{torch_npu / 'lib'}",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-ltorch_npu",
        f"-L{folder}",
        "-lascendcl",
    ]
    # what libtorch_npu.so itself needs is loaded by preload.py, not found by the linker
    link(
        "g++", "liboverride.so", objects, folder, *libraries, "-Wl,--unresolved-symbols=ignore-in-shared-libs"
    )


class BuildWithStub(build_py):
    """The Python files, then the libraries and the .pth file."""

    def run(self) -> None:
        super().run()
        root = Path(self.build_lib)
        folder = root / "simnpu" / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        OBJECTS.mkdir(parents=True, exist_ok=True)
        build_stub(folder)
        build_override(folder)
        shutil.copy(HERE / "simnpu.pth", root / "simnpu.pth")


setup(cmdclass={"build_py": BuildWithStub})
