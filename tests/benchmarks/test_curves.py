"""The harness of loss curves runs `swift sft` as it is, in two precisions, and draws what it finds."""

from __future__ import annotations

import argparse

import pytest


def test_curves_of_two_precisions_lie_over_each_other(tmp_path):
    import curves
    import plot

    from swiftlet.models.families import EMBEDDED

    options = argparse.Namespace(
        model=EMBEDDED["tiny-math-chat"],
        steps=20,
        samples=1,
        learning_rate=4e-3,
        threads=1,
        limit_s=300.0,
    )
    job = curves.make_job(options, tmp_path)
    runs = {name: curves.run_one(name, job, options, tmp_path) for name in ("swiftlet fp32", "swiftlet bf16")}
    wide, short = (run["losses"] for run in runs.values())
    assert len(wide) == len(short) == 20
    assert wide != short
    assert short == pytest.approx(wide, rel=0.05)
    assert min(wide[-5:]) < 0.8 * wide[0]
    figure = plot.draw_curves([{"runs": runs}])
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == list(runs)
    assert axes.lines[0].get_xdata().tolist() == [10, 20]
