"""A healthy server that each test breaks in one place."""

from __future__ import annotations

import pytest
from machines import Server


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path / "root")
