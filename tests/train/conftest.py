"""The toy job, as a fixture."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def build_job():
    import toy

    return toy.build_job
