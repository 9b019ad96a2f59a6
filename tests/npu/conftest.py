"""Tests on simulated NPUs: skipped without the simulator, unless NPUSIM_REQUIRED=1 says that they must run."""

from __future__ import annotations

import importlib.util
import os

import pytest

REQUIRED = os.environ.get("NPUSIM_REQUIRED") == "1"
skipped: list[str] = []


def reason_to_skip() -> str | None:
    """Why these tests cannot run here, or None."""
    if os.environ.get("NPUSIM") != "1":
        return "NPUSIM is not 1: make npu-test runs these on simulated NPUs"
    missing = [name for name in ("torch_npu", "simnpu") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}; make npu-test builds them" if missing else None


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


@pytest.fixture(autouse=True)
def one_machine(tmp_path: os.PathLike, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of its own for the processes that a test starts."""
    monkeypatch.setenv("NPUSIM_STATE", str(tmp_path))
