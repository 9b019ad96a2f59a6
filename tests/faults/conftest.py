"""One tiny model, one file of rows, and a golden run to compare with: run against run, never a stored hash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Runs  # noqa: E402

NUM_STEPS, SAVE_STEPS = 12, 4


def pytest_collection_modifyitems(items):
    """Keep the tests of this folder in one worker: they share a server and golden runs."""
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("faults"))


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


def repeat(quick: int, full: int) -> list[object]:
    """Return the numbers of repetitions: the first ones in the default run, all of them in `make faults`."""
    return [*range(quick), *(pytest.param(number, marks=pytest.mark.slow) for number in range(quick, full))]


def check_golden(runs: Runs, golden: Runs, **options: object) -> None:
    """Start the run again with the same arguments and check that it ends like the golden one, in every byte."""
    done = runs.run(resume_from_checkpoint="auto", **options)
    assert done.code == 0, done.text
    mine, theirs = runs.hashes(NUM_STEPS), golden.hashes(NUM_STEPS)
    for name in ("sft_args.json", "MANIFEST.json") if options else ():  # they say what the options are
        del mine[name], theirs[name]
    assert mine == theirs
    assert runs.drafts() == []
