"""Runs through the Python API in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))  # for its recorder


@pytest.fixture
def fine_tune(model_folder, rows_file, tmp_path, monkeypatch):
    """Run sft on the tiny model; options override, one of None takes the default.

    Pictures are empty files where they are not drawn: they take four fifths of the time of so small a run.
    """
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))

    def run(folder="run", *, is_drawn=False, **options):
        from swiftlet import sft

        if not is_drawn:
            monkeypatch.setattr("swiftlet.train.plots._draw_one", lambda name, points, path: path.touch())
        settings = {
            "model_id_or_path": str(model_folder),
            "dataset": str(rows_file),
            "device": "cpu",
            "dtype": "fp32",
            "output_dir": str(tmp_path / folder),
            "add_output_dir_suffix": False,
            "max_steps": 6,
            "eval_steps": 3,
            "save_steps": 3,
            "logging_steps": 1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "dataset_test_ratio": 0.1,
            "learning_rate": 1e-2,
        }
        chosen = {**settings, **options}
        return sft(**{name: value for name, value in chosen.items() if value is not None})

    return run
