"""A pretended npu-smi: a program on the search path that prints what a test gives it."""

from __future__ import annotations

import pytest
from npu_smi_texts import NEAR, card_lines, info_text, install, mapping_text, topology_text


@pytest.fixture
def npu_smi(tmp_path):
    """Return a function that installs an npu-smi with these answers and returns the environment that finds it."""
    return lambda *answers, **options: install(tmp_path, *answers, **options)


@pytest.fixture
def eight_cards(npu_smi):
    """The environment of the published machine: eight cards, all idle."""
    names = [f"NPU{number}" for number in range(8)]
    cards = [card_lines(number) for number in range(8)]
    return npu_smi(info_text(cards), mapping_text(range(8)), topology_text(names, NEAR))
