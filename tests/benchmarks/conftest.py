"""The scripts of benchmarks/ import each other by their names alone; so do their tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let a test import them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
