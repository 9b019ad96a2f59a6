"""How speed and memory grow: with the length of samples, their number, the model's size, ranks, time, and rows of data.

python benchmarks/scaling.py --what length batch size ranks endurance rows --out docs/benchmarks/scaling.json

Length, batch and size are measured on single steps (see step.py), the samples of a length adding up to as many tokens
as the longest. Ranks, endurance and rows are whole runs of swift sft; endurance compares the speed of the tenths of a
long run in processor seconds, rows the memory of runs that differ in the size of their data alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import step
import torch
from process import run_watched
from report import facts, markdown, parser_of, write
from stepping import floor_flops
from tools import TOOLS, Job, environment
from workload import SIZES, make_model, make_rows

ONE_STEP = ("length", "batch", "size")
WHOLE_RUNS = ("ranks", "rows")
CHATS = 160
SHORT = 40  # tokens of a row where there are many


def point(options: argparse.Namespace, variant: str, **changes: Any) -> dict[str, Any]:
    """Return the figures of one variant at one place of a scale."""
    defaults = {
        "size": options.size,
        "vocabulary": options.vocabulary,
        "dtype": "fp32",
        "tuner": "lora",
        "dropout": 0.05,
        "samples": 8,
        "length": 0,
        "threads": options.threads,
        "device": "cpu",
        "edge": 512,
        "repeats": options.repeats,
        "variants": [variant],
    }
    at = argparse.Namespace(**{**defaults, **changes})
    setting, samples = step.setting_of(at), step.samples_of(at)
    found = step.measure(at, setting, samples)
    step.summarise(found, floor_flops(setting, samples), samples.num_tokens)
    result = found[variant] | {"tokens": samples.num_tokens, "variant": variant, **changes}
    result["peak_above_model_bytes"] = step.measured_peak(variant, at)
    return result


def one_step(what: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the points of a scale that single steps show."""
    longest = max(options.lengths)
    changes: list[dict[str, Any]] = {
        "length": [{"length": n, "samples": longest // n} for n in options.lengths],
        "batch": [{"samples": n} for n in options.batches],
        "size": [{"size": name} for name in options.sizes],
    }[what]
    return [
        point(options, variant, **change) | {"what": what}
        for change in changes
        for variant in options.variants
    ]


def whole_run(
    options: argparse.Namespace,
    folder: Path,
    *,
    steps: int,
    name: str,
    ranks: int = 1,
    rows: int | None = None,
) -> dict[str, Any]:
    """Run swift sft and return its marks, its peak memory and its speed from the first step to the last.

    Args:
        rows: so many short rows in the place of chats.
    """
    model = make_model(
        folder / f"{options.size}-{options.vocabulary}", SIZES[options.size], options.vocabulary
    )
    data = make_rows(folder / f"{name}.jsonl", rows or CHATS, lengths=[SHORT] * (rows or 0))
    job = Job(model, data, 16 // ranks, 1, steps, "fp32")
    command = [
        *TOOLS["swiftlet"].command("default", job, folder / "out"),
        "--num_train_epochs",
        "1000",
        "--save_strategy",
        "no",
    ]
    environ = environment(max(1, options.threads // ranks), "cpu") | {"NPROC_PER_NODE": str(ranks)}
    outcome = run_watched(
        command, environ=environ, folder=folder, log=folder / f"{name}.log", limit_s=options.limit_s
    )
    if outcome.code:
        raise SystemExit(f"{name} ended with code {outcome.code}, see {folder / name}.log")
    first, last = outcome.marks[0], outcome.marks[-1]
    count = last["step"] - first["step"]
    return {
        "ranks": ranks,
        "steps_per_s": count / (last["wall_s"] - first["wall_s"]),
        "steps_per_cpu_s": count / (last["cpu_s"] - first["cpu_s"]),
        "first_step_s": first["wall_s"],
        "peak_rss_bytes": outcome.peak_rss,
        "marks": outcome.marks,
    }


def endurance(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the steps a processor second in each tenth of a long run, the first step left out."""
    run = whole_run(options, folder, steps=options.steps, name="endurance")
    marks = run.pop("marks")[1:]
    length = max(2, len(marks) // 10)
    parts = [marks[start : start + length] for start in range(0, len(marks) - length + 1, length)]
    tenths = [(len(part) - 1) / (part[-1]["cpu_s"] - part[0]["cpu_s"]) for part in parts]
    return {"what": "endurance", **run, "tenths": tenths}


def table(points: list[dict[str, Any]]) -> str:
    """Return the points of single steps as a table."""
    rows = [
        [
            one["what"],
            str(one.get(one["what"]) or one.get("samples")),
            one["variant"],
            f"{one['tokens']}",
            f"{one['tokens_per_s']:.0f}",
            f"{one['peak_above_model_bytes'] / 1e6:.0f}",
            f"{one['share_of_gemm_rate']:.0%}",
        ]
        for one in points
        if one["what"] in ONE_STEP
    ]
    header = [
        "scale",
        "value",
        "variant",
        "tokens",
        "tokens/cpu s",
        "peak above model MB",
        "share of GEMM rate",
    ]
    return markdown(header, rows)


def main() -> None:
    """Measure what is asked, print a table, and write JSON after each part."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--what", nargs="+", choices=[*ONE_STEP, *WHOLE_RUNS, "endurance"], default=["length"]
    )
    parser.add_argument("--size", choices=SIZES, default="2m")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048, 8192])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=["2m", "60m"])
    parser.add_argument("--variants", nargs="+", default=["ours"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 1000000])
    parser.add_argument("--steps", type=int, default=1000, help="steps of the long run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit_s", type=float, default=3600.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"facts": facts(options), "points": []}
    with tempfile.TemporaryDirectory(prefix="swiftlet-scaling-") as temporary:
        folder = Path(temporary)
        for what in options.what:
            if what in ONE_STEP:
                result["points"] += one_step(what, options)
            elif what in WHOLE_RUNS:
                for value in getattr(options, what):
                    change = {what: value}
                    run = whole_run(options, folder, steps=10, name=f"{what}-{value}", **change)
                    del run["marks"]
                    result["points"].append({"what": what, **run, **change})
            else:
                result["points"].append(endurance(options, folder))
            write(options.out, result)
    print(table(result["points"]))
    for one in result["points"]:
        if one["what"] not in ONE_STEP:
            print(json.dumps(one))


if __name__ == "__main__":
    main()
