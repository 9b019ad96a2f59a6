"""The plan of a run on an accelerator beside what the run needed: memory and the time of a step.

python benchmarks/plan_accelerator.py --cases qwen2.5-0.5b/lora qwen2.5-7b/lora qwen2.5-14b/lora --out plan.json

Models have random weights and the geometry of Qwen2.5; figures are those of the last line of logging.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import facts, markdown
from workload import SIZES, make_model, make_rows

NAMES = ("memory_gib", "reserved_gib", "visible_gib", "step_seconds")
PREDICTED = (
    "predicted_needed_gib",
    "predicted_reserved_gib",
    "predicted_visible_gib",
    "predicted_step_seconds",
)


def run(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the last line of the log of one run, and how long it took."""
    size, tuner, *flags = case.split("/")
    folder = options.folder / f"{size}-{options.vocabulary}"
    model = make_model(folder, SIZES[size], options.vocabulary, "bfloat16", options.device)
    rows = make_rows(options.folder / "rows.jsonl", options.steps * options.batch)
    out = options.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "swiftlet.cli", "sft", "--model_id_or_path", model, "--dataset", rows]
    command += ["--sft_type", tuner, "--batch_size", options.batch, "--gradient_accumulation_steps", 1]
    command += [
        "--dtype",
        "bf16",
        "--max_steps",
        options.steps,
        "--dataset_test_ratio",
        0,
        "--output_dir",
        out,
    ]
    command += ["--evaluation_strategy", "no", "--save_strategy", "no"]
    command += ["--lora_target_modules", "ALL"] if tuner == "lora" else []
    command += [word for flag in flags for word in (f"--{flag}", "true")]
    start = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    found: dict[str, Any] = {"case": case, "code": done.returncode, "wall_s": time.perf_counter() - start}
    if done.returncode:
        return found | {"failed": (done.stdout + done.stderr)[-2000:]}
    log = next(out.rglob("logging.jsonl"))
    lines = map(json.loads, reversed(log.read_text(encoding="utf-8").splitlines()))
    return found | next(row for row in lines if "reserved_gib" in row)


def main() -> None:
    """Run all cases, print a table, and write JSON after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        if options.out:
            options.out.write_text(json.dumps({"facts": facts(options), "runs": found}, indent=1))
    rows = [
        [one["case"], *(f"{one[a]:.2f} ({one[b]:.2f})" for a, b in zip(NAMES, PREDICTED, strict=True))]
        for one in found
        if one["code"] == 0
    ]
    header = ["case", "allocated GiB (predicted)", "reserved GiB", "visible GiB", "step s"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
