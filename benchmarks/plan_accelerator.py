"""The plan of a run on an accelerator beside what the run needed: memory and the time of a step.

python benchmarks/plan_accelerator.py --cases qwen2.5-0.5b/lora qwen2.5-7b/lora qwen2.5-14b/lora --out plan.json

Models have random weights and the geometry of Qwen2.5; figures are those of the last line of logging.jsonl.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import facts, markdown, parser_of, write
from tools import flags_of, last_figures
from workload import SIZES, make_model, make_rows

NAMES = ("memory_gib", "reserved_gib", "visible_gib", "step_seconds")
PREDICTED = tuple(f"predicted_{name}" for name in ("needed_gib", *NAMES[1:]))


def run(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the last line of the log of one run, and how long it took."""
    size, tuner, *flags = case.split("/")
    folder = options.folder / f"{size}-{options.vocabulary}"
    model = make_model(folder, SIZES[size], options.vocabulary, "bfloat16", options.device)
    rows = make_rows(options.folder / "rows.jsonl", options.steps * options.batch)
    out = options.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    values = {
        "model_id_or_path": model,
        "dataset": rows,
        "sft_type": tuner,
        "batch_size": options.batch,
        "gradient_accumulation_steps": 1,
        "dtype": "bf16",
        "max_steps": options.steps,
        "dataset_test_ratio": 0,
        "output_dir": out,
        "evaluation_strategy": "no",
        "save_strategy": "no",
        **({"lora_target_modules": "ALL"} if tuner == "lora" else {}),
        **dict.fromkeys(flags, "true"),
    }
    command = [sys.executable, "-m", "swiftlet.cli", "sft", *flags_of(values)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, Any] = {"case": case, "code": done.returncode, "wall_s": time.perf_counter() - start}
    if done.returncode:
        return found | {"failed": (done.stdout + done.stderr)[-2000:]}
    return found | last_figures(out)


def main() -> None:
    """Run all cases, print a table, and write JSON after each."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cases", nargs="+", default=["qwen2.5-0.5b/lora", "qwen2.5-7b/lora"])
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--folder", type=Path, required=True, help="models and rows; kept")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for case in options.cases:
        found.append(run(case, options))
        print(
            {name: found[-1].get(name) for name in ("case", "code", "wall_s", *NAMES, *PREDICTED, "failed")}
        )
        write(options.out, {"facts": facts(options), "runs": found})
    rows = [
        [one["case"], *(f"{one[a]:.2f} ({one[b]:.2f})" for a, b in zip(NAMES, PREDICTED, strict=True))]
        for one in found
        if one["code"] == 0
    ]
    header = ["case", "allocated GiB (predicted)", "reserved GiB", "visible GiB", "step s"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
