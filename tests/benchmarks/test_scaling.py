"""The harness of scales runs `swift sft` as it is and finds its steps."""

from __future__ import annotations

import argparse


def test_a_long_run_has_the_speed_of_its_ends(monkeypatch, tmp_path):
    import scaling

    monkeypatch.setitem(
        scaling.SIZES, "2m", scaling.SIZES["2m"]._replace(layers=1, hidden=64, intermediate=128)
    )
    options = argparse.Namespace(size="2m", vocabulary=8192, threads=1, steps=5, limit_s=300.0)
    found = scaling.endurance(options, tmp_path)
    assert len(found["tenths"]) == 2  # of four steps after the first
    assert min(found["tenths"]) > 0
    assert found["peak_rss_bytes"] > 100e6
