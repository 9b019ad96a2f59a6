"""The loss of each step of the same fine-tuning in swiftlet, in several precisions, and in other tools.

python benchmarks/curves.py --steps 300 --out docs/benchmarks/curves.json

All start from the embedded model, written out in fp32, and learn the same worked problems with LoRA; they read the
rows in orders of their own. Learning rate, warm-up and schedule are the same. Not a measurement of speed: bf16 is slow
where the processor has no multiplier for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from process import run_watched
from report import facts, parser_of, write
from tools import TOOLS, Job, environment, install
from workload import CHAT_TEMPLATE, copy_model

from swiftlet.data.demo_math import problems
from swiftlet.models.families import EMBEDDED

RUNS = {
    "swiftlet fp32": ("swiftlet", "default", "fp32"),
    "swiftlet bf16": ("swiftlet", "default", "bf16"),
    "trl fp32": ("trl", "best", "fp32"),
    "llama-factory fp32": ("llama-factory", "best", "fp32"),
    "ms-swift fp32": ("ms-swift", "best", "fp32"),
    "swiftlet as it comes": ("swiftlet", "default", "auto"),
    "trl as it comes": ("trl", "default", "auto"),
    "llama-factory as it comes": ("llama-factory", "default", "auto"),
    "ms-swift as it comes": ("ms-swift", "default", "auto"),
}


def make_job(options: argparse.Namespace, folder: Path) -> Job:
    """Write the model, with the template of ChatML that all tools have, and the rows."""
    model = copy_model(options.model, folder / "model", "float32")
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}), encoding="utf-8")
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for problem in problems(options.steps * options.samples):
            turns = [("user", problem.question), ("assistant", f"{problem.solution()} {problem.sentence}")]
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return Job(
        model,
        rows,
        options.samples,
        1,
        options.steps,
        "fp32",
        learning_rate=options.learning_rate,
        warmup_steps=options.steps // 20,
    )


def run_one(name: str, job: Job, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return how one run ended and the losses of its steps."""
    tool, variant, dtype = RUNS[name]
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    outcome = run_watched(
        TOOLS[tool].command(variant, job._replace(dtype=dtype), out),
        environ=environment(options.threads, "cpu"),
        folder=folder,
        log=folder / f"{name.replace(' ', '-')}.log",
        limit_s=options.limit_s,
    )
    print(f"{name}: code {outcome.code}, {len(outcome.marks)} steps, {outcome.wall_s:.0f} s", flush=True)
    return {"code": outcome.code, "losses": [mark["loss"] for mark in outcome.marks]}


def main() -> None:
    """Run all of them and write their losses."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED["tiny-math-chat"])
    precisions = [name for name, run in RUNS.items() if run[2] != "auto"]
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=precisions)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=8, help="a step")
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit_s", type=float, default=1800.0, help="kill a run after this time")
    parser.add_argument("--folder", type=Path, help="keep the model, rows and logs there")
    parser.add_argument("--out", type=Path, help="JSON of all losses")
    options = parser.parse_args()
    for name in options.runs:
        install(TOOLS[RUNS[name][0]])
    with tempfile.TemporaryDirectory(prefix="swiftlet-curves-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        job = make_job(options, folder)
        result: dict[str, Any] = {"facts": facts(options), "runs": {}}
        for name in options.runs:
            result["runs"][name] = run_one(name, job, options, folder)
            write(options.out, result)


if __name__ == "__main__":
    main()
