"""Memory of each rank and seconds of a step by engine, for a model whose weights dominate.

python benchmarks/engines.py --ranks 2 --kind lora --rounds 3

Each run is the program's sft in one process a rank. Memory is what the process owns (RssAnon of proc(5), which leaves
libraries and mapped files out), above what it owned before the run. A step is timed between optimizer steps, the
first two left out. The engines run interleaved, round by round, so that their ratios hold on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from process import rank_environments, status_bytes
from report import facts, markdown, parser_of, write
from workload import Size, make_model, make_rows

# The defaults keep up to 1e9 gathered parameters, so all of a model that fits here; this keeps a layer's.
TIGHT = {
    "stage": 3,
    "overlap_comm": False,
    "reduce_bucket_size": 1_000_000,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero2": {"deepspeed": "default-zero2"},
    "zero3": {"deepspeed": "default-zero3"},
    "zero3-tight": {"deepspeed": json.dumps({"zero_optimization": TIGHT})},
    "fsdp2": {"fsdp": "full_shard"},
}
VOCABULARY, NUM_STEPS, PERIOD_S = 8192, 6, 0.01
OWNED = "RssAnon"


def size_of(layers: int, hidden: int) -> Size:
    """Return a model of usual proportions with heads of 64."""
    return Size(layers, hidden, hidden * 11 // 4, hidden // 64, hidden // 64)


class Watch:
    """The most memory owned since `mark`, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.start = self.peak = status_bytes(OWNED)
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, status_bytes(OWNED))
            time.sleep(PERIOD_S)

    def mark(self) -> int:
        """Return the peak since the last mark, above the start, and begin again."""
        peak, self.peak = self.peak - self.start, status_bytes(OWNED)
        return peak


def be_rank(options: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank and return the peaks of loading and of training, and the seconds of the steps."""
    import peft  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    if options.get("deepspeed"):
        import deepspeed  # noqa: F401
    from swiftlet import heartbeat
    from swiftlet.commands import sft, training  # noqa: F401

    watch = Watch()
    found: dict[str, Any] = {"steps": []}
    beat = heartbeat.beat

    def note(phase: str, step: int = 0) -> None:
        if phase == "step" and step == 1:
            found["load"] = watch.mark()
        if phase == "step":
            found["steps"].append(time.perf_counter())
        beat(phase, step)

    heartbeat.beat = note
    sft.call(options)
    found["train"] = watch.mark()
    times = found.pop("steps")
    found["step_s"] = [later - sooner for sooner, later in zip(times[2:], times[3:], strict=False)]
    return found


def run_engine(engine: str, ranks: int, options: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run all ranks of a training run and return what each measured."""
    batch = options["batch_size"] // ranks
    words = {**options, **ENGINES[engine], "batch_size": batch, "output_dir": str(folder / engine)}
    command = [sys.executable, __file__, "--rank", json.dumps(words)]
    more = {"SWIFTLET_CACHE": str(folder / "cache")}
    more |= {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # freed tensors go back at once, so the peak is what is in use
    processes = [
        subprocess.Popen(command, env=environ | more, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for environ in rank_environments(ranks)
    ]
    outputs = [process.communicate()[0].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), (engine, outputs)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return medians by engine over interleaved rounds."""
    found: dict[str, list[list[dict[str, Any]]]] = {engine: [] for engine in options.engines}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = make_model(folder / "model", size_of(options.layers, options.hidden), VOCABULARY)
        rows = make_rows(folder / "rows.jsonl", 40, lengths=[24] * 40)
        words = {
            "model_id_or_path": str(model),
            "dataset": str(rows),
            "device": "cpu",
            "dtype": "fp32",
            "sft_type": options.kind,
            "max_steps": NUM_STEPS,
            "num_train_epochs": 99,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "evaluation_strategy": "no",
            "save_strategy": "no",
            "dataset_test_ratio": 0.1,
            "add_output_dir_suffix": False,
            "bind_cpu": False,
            "report_to": "none",
        }
        for number in range(options.rounds):
            for engine in options.engines:
                found[engine].append(run_engine(engine, options.ranks, words, folder / str(number)))
        weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return {"weights_bytes": weights, "engines": {name: _summary(rounds) for name, rounds in found.items()}}


def _summary(rounds: list[list[dict[str, Any]]]) -> dict[str, float]:
    def most(name: str) -> float:
        return statistics.median(max(rank[name] for rank in ranks) for ranks in rounds)

    steps = [second for ranks in rounds for second in ranks[0]["step_s"]]
    return {"load_bytes": most("load"), "train_bytes": most("train"), "step_s": statistics.median(steps)}


def table(result: dict[str, Any]) -> str:
    """Return the medians as a table."""
    base = result["engines"].get("ddp") or next(iter(result["engines"].values()))
    rows = [
        [
            name,
            f"{found['load_bytes'] / 2**20:.0f}",
            f"{found['train_bytes'] / 2**20:.0f}",
            f"{found['train_bytes'] / base['train_bytes']:.2f}",
            f"{found['step_s']:.2f}",
            f"{found['step_s'] / base['step_s']:.2f}",
        ]
        for name, found in result["engines"].items()
    ]
    header = ["engine", "peak while loading MiB", "peak while training MiB", "of ddp", "step s", "of ddp"]
    return markdown(header, rows)


def main() -> None:
    """Measure and print, or be one rank of a measurement."""
    parser = parser_of(__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--kind", choices=("lora", "full"), default="lora")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--folder", help="where the model is written")
    parser.add_argument("--out", type=Path, help="file of the results")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        print(json.dumps(be_rank(json.loads(options.rank))))
        return
    result = {**facts(options), **measure(options)}
    write(options.out, result)
    print(f"weights: {result['weights_bytes'] / 2**20:.0f} MiB, {options.ranks} ranks, {options.kind}")
    print(table(result))


if __name__ == "__main__":
    main()
