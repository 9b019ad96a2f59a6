"""The same fine-tuning in swiftlet and in other tools, side by side: speed, memory, start-up, loss.

python benchmarks/peers.py --cases 2m/8192/1x16 60m/8192/8x2 --rounds 3 --out docs/benchmarks/peers.json
python benchmarks/peers.py --model FOLDER --alpaca alpaca_en_demo.json --rows 1000 --cases model/0/1x16

A case is SIZE/VOCABULARY/BATCHxACCUMULATION; the model, its tokenizer and the rows are made here. Every tool runs once
a round, one after the other, so that their ratios hold on a busy machine; medians of the rounds are reported. All
tools get the same model folder, rows, precision, learning rate and threads.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from process import Outcome, run_watched
from report import facts, markdown, parser_of, peers_table, write
from tools import TOOLS, Job, device_peak, environment, install
from workload import SIZES, convert_alpaca, copy_model, count_tokens, make_model, make_rows

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def figures(outcome: Outcome, num_tokens: int, weights: int) -> dict[str, Any]:
    """Return what one run shows. Speed is from the end of the first step to the end of the last one."""
    marks = outcome.marks
    found: dict[str, Any] = {
        "code": outcome.code,
        "wall_s": outcome.wall_s,
        "cpu_s": outcome.cpu_s,
        "peak_rss_bytes": outcome.peak_rss,
        "peak_above_weights_bytes": outcome.peak_rss - weights,
    }
    if outcome.device_peak:
        allocated, reserved = outcome.device_peak
        found |= {"device_peak_above_weights_bytes": allocated - weights, "device_reserved_bytes": reserved}
    if not marks:
        return found
    found |= {
        "first_step_s": marks[0]["wall_s"],
        "first_step_cpu_s": marks[0]["cpu_s"],
        "loss": statistics.fmean(mark["loss"] for mark in marks),
        "last_loss": marks[-1]["loss"],
        "losses": [mark["loss"] for mark in marks],
    }
    if len(marks) > 1:
        tokens = num_tokens * (len(marks) - 1) / marks[-1]["step"]
        found |= {
            "tokens_per_s": tokens / (marks[-1]["wall_s"] - marks[0]["wall_s"]),
            "tokens_per_cpu_s": tokens / max(1e-3, marks[-1]["cpu_s"] - marks[0]["cpu_s"]),
        }
    return found


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median, least and most of each figure over the rounds that ended well."""
    good = [run for run in runs if run["code"] == 0]
    names = [name for name, value in (good[0] if good else {}).items() if isinstance(value, int | float)]
    summary: dict[str, Any] = {"rounds": len(good), "failed": len(runs) - len(good)}
    for name in names:
        values = [run[name] for run in good if name in run]
        summary[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return summary


def prepare(case: str, options: argparse.Namespace, folder: Path) -> tuple[Job, int, int]:
    """Return the job of a case, the tokens of all its steps, and the bytes of the model's weights."""
    size, vocabulary, shape = case.split("/")
    batch, accumulation = map(int, shape.split("x"))
    steps = options.steps
    rows = folder / f"rows-{options.rows or steps * batch * accumulation}.jsonl"
    number = options.rows or steps * batch * accumulation
    if options.model:
        model = options.model.resolve()
        if options.dtype in DTYPES:
            model = copy_model(model, folder / f"model-{options.dtype}", DTYPES[options.dtype])
        convert_alpaca(options.alpaca, rows, number)
    else:
        dtype = DTYPES.get(options.dtype, "float32")
        name = f"{size}-{vocabulary}-{dtype}"
        model = make_model(folder / name, SIZES[size], int(vocabulary), dtype, options.device)
        make_rows(rows, number)
    lengths = count_tokens(model, rows)
    tokens = round(statistics.fmean(lengths) * steps * batch * accumulation)
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    job = Job(model, rows.resolve(), batch, accumulation, steps, options.dtype, device=options.device)
    return job, tokens, weights


def run_case(case: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every tool in every round of a case; return the figures."""
    job, tokens, weights = prepare(case, options, folder)
    wanted = [
        (tool, variant)
        for tool in (TOOLS[name] for name in options.tools)
        for variant in tool.variants
        if variant in options.variants or (tool.name, variant) == ("swiftlet", "default")
    ]
    here, commands = f"{Path(__file__).resolve().parent.parent}/", {}
    runs: dict[str, list[dict[str, Any]]] = {f"{tool.name} {variant}": [] for tool, variant in wanted}
    for number in range(options.rounds):
        for tool, variant in wanted:
            name = f"{tool.name} {variant}"
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            log = folder / f"{case.replace('/', '-')}-{tool.name}-{variant}-{number}.log"
            command = tool.command(variant, job, out, options.python)
            commands[name] = " ".join(command).replace(here, "").replace(str(folder), "FOLDER")
            outcome = run_watched(
                command,
                environ=environment(options.threads, options.device),
                folder=folder,
                log=log,
                limit_s=options.limit_s,
            )
            if tool.name == "swiftlet" and options.device != "cpu":
                outcome.device_peak = device_peak(out)
            runs[name].append(figures(outcome, tokens, weights))
            speed = runs[name][-1].get("tokens_per_s", 0.0)
            print(f"{case} {name}: code {outcome.code}, {speed:.0f} tokens/s, {outcome.wall_s:.0f} s, {log}")
    shutil.rmtree(folder / "out", ignore_errors=True)
    return {
        "case": case,
        "tokens": tokens,
        "weights_bytes": weights,
        "commands": commands,
        "tools": {name: {"summary": medians(found), "runs": found} for name, found in runs.items()},
    }


def main() -> None:
    """Install what is missing, run all cases, write JSON after each of them, and print tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--cases", nargs="+", default=["2m/8192/1x16", "2m/8192/8x2"])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=["default", "best", "best-liger", "partial", "lean", "each", "graphs"],
        default=["default", "best"],
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--python", help="an interpreter that has all the tools; nothing is installed then")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "auto"], default="fp32")
    parser.add_argument("--model", type=Path, help="a real model instead of a random one")
    parser.add_argument("--alpaca", type=Path, help="rows of instruction, input and output for --model")
    parser.add_argument("--rows", type=int, help="rows of the file; as many as the steps need when not given")
    parser.add_argument("--limit_s", type=float, default=1800.0, help="kill a run after this time")
    parser.add_argument("--folder", type=Path, help="keep models, rows and logs there")
    parser.add_argument("--out", type=Path, help="JSON of all figures; a table beside it")
    options = parser.parse_args()
    for name in options.tools if options.python is None else []:
        install(TOOLS[name])
    with tempfile.TemporaryDirectory(prefix="swiftlet-peers-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"facts": facts(options), "cases": []}
        for case in options.cases:
            result["cases"].append(run_case(case, options, folder))
            print(markdown(*peers_table(result["cases"][-1])))
            write(options.out, result)


if __name__ == "__main__":
    main()
