"""Tests on simulated NPUs: skipped without the simulator, unless NPUSIM_REQUIRED=1 says that they must run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REQUIRED = os.environ.get("NPUSIM_REQUIRED") == "1"
skipped: list[str] = []


def reason_to_skip() -> str | None:
    """Why these tests cannot run here, or None."""
    if os.environ.get("NPUSIM") != "1":
        return "NPUSIM is not 1: make npu-test runs these on simulated NPUs"
    missing = [name for name in ("torch_npu", "simnpu") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}; make npu-test builds them" if missing else None


@pytest.fixture(scope="module")
def npu():
    """torch_npu, whose functions tests call; what a file draws follows from a seed."""
    import torch
    import torch_npu

    torch.manual_seed(0)
    return torch_npu


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("npu_sim") and (reason := reason_to_skip()):
        pytest.skip(reason)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skipped test must not look like a passed one in the job that exists for these tests."""
    if REQUIRED and skipped:
        print(f"\nNPUSIM_REQUIRED=1, but {len(skipped)} tests were skipped: {', '.join(skipped)}")
        session.exitstatus = 1


class Machine:
    """A folder to work in and an environment with simulated cards, both hubs' caches and a cache of our own."""

    def __init__(self, folder: Path) -> None:
        from hubs import lay_out

        self.folder = folder
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ASCEND_RT", "NPROC", "NNODES", "RANK", "USE_HF"))
        }
        cann = Path(os.environ["ASCEND_HOME_PATH"])  # the simulator's; what its set_env.sh adds:
        self.environ |= {
            "LD_LIBRARY_PATH": str(cann / "lib64"),
            "PYTHONPATH": str(cann / "python/site-packages"),
        }
        self.environ |= lay_out(folder / "hubs")
        self.environ |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "NPUSIM_STATE": str(folder / "state"),
            "SWIFTLET_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.done: dict[str, subprocess.CompletedProcess[str]] = {}

    def type(self, line: str, answers: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a line of a shell; what it prints on both streams is in `stdout`."""
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environ | environ,
            input=answers,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
            check=False,
        )

    def once(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line, or return what came of it before."""
        if line not in self.done:
            self.done[line] = self.type(line)
        return self.done[line]


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(autouse=True)
def one_machine(tmp_path: os.PathLike, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of its own for the processes that a test starts."""
    monkeypatch.setenv("NPUSIM_STATE", str(tmp_path))
