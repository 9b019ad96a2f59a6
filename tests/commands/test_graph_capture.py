"""`--graph_capture`: passes that are recorded train as those that are launched, on a recorder of a processor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorder import ATTENTION, Recorder

from run_files import lines
from swiftlet.commands import model_setup
from swiftlet.device import cpu
from swiftlet.errors import UsageError

FIGURES = ("loss", "acc", "grad_norm", "eval_loss")


def figures(folder):
    return [row[name] for row in lines(folder) for name in FIGURES if name in row]


def test_recorded_passes_train_as_those_that_are_launched(fine_tune, monkeypatch, capfd):
    plain = fine_tune("plain", share_prefixes="false", max_steps=12)
    open_this, recorder, built = cpu.open_this, Recorder(), []
    monkeypatch.setattr(cpu, "open_this", lambda rank: replace(open_this(rank), capture=recorder))
    monkeypatch.setattr(model_setup, "choose_kernels", lambda *_, **__: {"attention": ATTENTION})
    # one of its reasons is true of a processor: its masks are drawn by the host
    monkeypatch.setattr(model_setup, "obstacle", built.append)
    recorded = fine_tune("recorded", graph_capture=True, max_steps=12)
    assert "training passes are recorded as graphs and replayed" in "".join(capfd.readouterr())
    (causal,) = built
    assert causal.graphs.is_on
    assert recorder.num_played > 3
    assert not causal.shares_prefixes
    assert figures(recorded.output_dir) == pytest.approx(figures(plain.output_dir), rel=1e-4)


def test_a_device_without_a_recorder_says_what_to_type(fine_tune):
    with pytest.raises(UsageError, match="--graph_capture: .* records no passes") as caught:
        fine_tune(graph_capture=True)
    assert caught.value.hint == "leave it out"


def test_a_model_whose_passes_cannot_be_recorded_says_why(fine_tune, monkeypatch):
    open_this = cpu.open_this
    monkeypatch.setattr(cpu, "open_this", lambda rank: replace(open_this(rank), capture=Recorder()))
    with pytest.raises(UsageError, match="the attention is told of its samples by the host"):
        fine_tune(graph_capture=True)
