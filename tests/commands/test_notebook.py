"""Several runs in one process, as in a notebook: the model of one is gone before the next one is loaded."""

from __future__ import annotations

import weakref

import pytest
from torch import nn

from swiftlet import infer, sft


@pytest.fixture
def modules(monkeypatch):
    """Return weak references to all modules that are made from here on."""
    made: list[weakref.ref[nn.Module]] = []
    initialise = nn.Module.__init__

    def recorded(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(nn.Module, "__init__", recorded)
    return made


def num_with_weights(modules):
    return sum(
        module is not None and any(True for _ in module.parameters()) for module in (m() for m in modules)
    )


def test_no_weights_are_left_after_a_run_or_after_answers(tmp_path, monkeypatch, modules):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))
    outcome = sft(
        model_type="tiny-math-chat",
        dataset="demo-math-zh#40",
        dataset_test_ratio=0.1,
        max_steps=1,
        evaluation_strategy="no",
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    assert len(modules) > 20
    assert num_with_weights(modules) == 0
    modules.clear()
    infer(ckpt_dir=str(outcome.last_checkpoint), load_dataset_config=True, max_new_tokens=2)
    assert len(modules) > 20
    assert num_with_weights(modules) == 0
