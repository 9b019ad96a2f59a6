"""One tiny model, one file of rows, and a golden run to compare with: run against run, never a stored hash."""

from __future__ import annotations

import json
import os
import sys
from datetime import date
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import NUM_STEPS, SAVE_STEPS  # noqa: E402
from harness import Runs  # noqa: E402

RECORD = "FAULTS_RECORD"  # set by tools/faults.py


def pytest_collection_modifyitems(items):
    """Keep the tests of this folder in one worker: they share a server and golden runs."""
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("faults"))


def pytest_runtest_logreport(report):
    """Add the outcome of a case to the record that tools/faults.py keeps."""
    is_of_others = not report.nodeid.startswith("tests/faults/")
    if RECORD not in os.environ or is_of_others or (report.when != "call" and report.passed):
        return
    entry = {"case": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1)}
    with Path(os.environ[RECORD]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**entry, "date": str(date.today())}) + "\n")


@pytest.fixture(scope="session")
def options(model_folder, rows_file) -> dict[str, object]:
    """What every run says."""
    return {
        "model_id_or_path": model_folder,
        "dataset": rows_file,
        "device": "cpu",
        "dtype": "fp32",
        "add_output_dir_suffix": "false",
        "report_to": "none",
        "max_steps": NUM_STEPS,
        "num_train_epochs": 9,
        "eval_steps": SAVE_STEPS,
        "save_steps": SAVE_STEPS,
        "logging_steps": 1,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "dataset_test_ratio": 0.1,
        "learning_rate": 1e-3,
        "preprocess_num_proc": 1,
    }


@pytest.fixture(scope="session")
def environ(tmp_path_factory) -> dict[str, str]:
    """The environment of every run: one cache of tokens, no faults, no launcher."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SWIFTLET_")}
    return {**mine, "SWIFTLET_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def runs(tmp_path, options, environ) -> Runs:
    """Runs in a folder of this test."""
    folder = tmp_path / "faults"
    return Runs(folder, {**options, "output_dir": folder / "run"}, environ)


@pytest.fixture(scope="session")
def golden(tmp_path_factory, options, environ) -> Runs:
    """An uninterrupted run on one process."""
    folder = tmp_path_factory.mktemp("golden")
    made = Runs(folder, {**options, "output_dir": folder / "run"}, environ)
    done = made.run()
    assert done.code == 0, done.text
    made.seconds = done.seconds
    return made


@pytest.fixture(scope="session")
def golden_of_two(tmp_path_factory, options, environ) -> Runs:
    """An uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("golden2")
    made = Runs(folder, {**options, "output_dir": folder / "run"}, environ)
    for done in made.run_ranks(2):
        assert done.code == 0, done.text
    return made


@pytest.fixture(scope="session")
def stopped_at_8(tmp_path_factory, options, environ) -> Path:
    """The folder of a run that was killed after its second checkpoint; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    made = Runs(folder, {**options, "output_dir": folder / "run"}, environ)
    done = made.run(fault="opt:step=10=exc")
    assert done.code == 1, done.text
    assert made.valid_steps() == [4, 8]
    return made.output
