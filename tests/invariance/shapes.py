"""The same training run in many shapes, through the program's entry point in one process a rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from harness import Done, Runs
from safetensors import safe_open

STEP_SIZE, NUM_STEPS = 16, 4
PATIENCE_S = 1800.0
SHORT_BUDGET = 20  # tokens: one or two samples a micro-batch
TOLERANCE = 1e-5
ENGINES = {
    "ddp": {},
    "zero2": {"deepspeed": "default-zero2"},
    "zero3": {"deepspeed": "default-zero3"},
    "zero3-offload": {"deepspeed": "zero3-offload"},
    "fsdp2": {"fsdp": "full_shard"},
    "fsdp2-offload": {"fsdp": "full_shard_offload"},
}
# A gradient that is zero but for rounding, as that of a key's bias, must not be blown up to a step of full size.
EPSILON = 1e-6


@dataclass
class Shapes:
    """Runs that differ in engine, ranks and accumulation alone."""

    folder: Path
    model: Path
    rows: Path
    environ: dict[str, str]

    def options(self, engine: str, ranks: int, accumulation: int, **more: object) -> dict[str, object]:
        return {
            "model_id_or_path": self.model,
            "dataset": self.rows,
            "device": "cpu",
            "dtype": "fp32",
            "add_output_dir_suffix": "false",
            "report_to": "none",
            "bind_cpu": "false",
            "preprocess_num_proc": 1,
            "dataset_test_ratio": 0.2,
            "max_steps": NUM_STEPS,
            "num_train_epochs": 9,
            "eval_steps": 2,
            "save_steps": 2,
            "save_total_limit": -1,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "adam_epsilon": EPSILON,
            "batch_size": STEP_SIZE // ranks // accumulation,
            "gradient_accumulation_steps": accumulation,
            **({"micro_batch_tokens": SHORT_BUDGET} if accumulation > 1 else {}),
            **ENGINES[engine],
            **more,
        }

    def run(
        self, name: str, engine: str = "ddp", ranks: int = 1, accumulation: int = 1, **more: object
    ) -> Runs:
        """Make a run in the folder `name`, or go on with the one there; return it."""
        folder = self.folder / name
        options = {**self.options(engine, ranks, accumulation, **more), "output_dir": folder / "run"}
        runs = Runs(folder, options, self.environ)
        for done in finish(runs, ranks):
            assert done.code == 0, done.text
        return runs

    def golden(self, name: str, **more: object) -> Runs:
        """Return the run of one process without an engine, made once."""
        folder = self.folder / name
        if not folder.exists():
            self.run(name, **more)
        return Runs(folder, {"output_dir": folder / "run"}, self.environ)


def finish(runs: Runs, ranks: int, **options: object) -> list[Done]:
    """Make a run of one process without a launcher, or of several ranks, to its end."""
    started = runs.start_ranks(ranks, **options) if ranks > 1 else [runs.start(**options)]
    return [one.wait(PATIENCE_S) for one in started]


def figures(runs: Runs, name: str) -> list[float]:
    """Return one figure of all log lines."""
    return [line[name] for line in runs.log_lines() if name in line]


def weights(runs: Runs, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint, of all its files."""
    found = {}
    for path in sorted((runs.output / f"checkpoint-{step}").glob("*model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def deviation(mine: list[float], theirs: list[float]) -> float:
    """Return the largest relative difference of two series."""
    return max(abs(a - b) / abs(b) if b else abs(a) for a, b in zip(mine, theirs, strict=True))


def check_same(runs: Runs, golden: Runs, tolerance: float = TOLERANCE) -> str:
    """Check that losses, norms and final weights are those of the golden run; return by how much they differ."""
    differences = {}
    for name in ("loss", "grad_norm", "eval_loss", "acc", "learning_rate"):
        differences[name] = deviation(figures(runs, name), figures(golden, name))
        assert figures(runs, name) == pytest.approx(figures(golden, name), rel=tolerance), name
    mine, theirs = weights(runs), weights(golden)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype, name
        torch.testing.assert_close(
            mine[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    differences["weights"] = max(float((mine[name] - theirs[name]).abs().max()) for name in theirs)
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items() if name != "learning_rate")
