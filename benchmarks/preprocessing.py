"""Rows to tokens, measured: rows/s, processor seconds, and the peak memory of all processes together.

python benchmarks/preprocessing.py --rows 1000 10000 100000 --tokenizer FOLDER [--variants ours peer] [--processes 2]

`ours` is swiftlet's `prepare` into an empty cache: reading, checking, rendering, tokens, labels, split and report.
`peer` is what the public libraries offer: `datasets.load_dataset` and `map` with the transformers tokenizer's
`apply_chat_template`, token ids only, without labels. Each runs in a process of its own, one after the other for each
number of rows; the seconds do not count imports. Prints one JSON object a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from report import parser_of

from swiftlet.models.families import EMBEDDED

WORDS = (
    "the train leaves at nine and arrives before noon so how many hours does it take if every stop adds three "
    "minutes to the way 小明 有 十二 个 苹果 , 他 给 了 朋友 四 个 还 剩 几 个 ? multiply 17 by 24 then add 9 ."
).split()
GLANCE_S = 0.05


def write_rows(path: Path, number: int) -> None:
    """Write questions and answers of about 30 and 100 words."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(number):
            query, response = (" ".join(rng.choices(WORDS, k=rng.randint(low, 4 * low))) for low in (12, 40))
            file.write(json.dumps({"query": query, "response": response}, ensure_ascii=False) + "\n")


def run_ours(rows: Path, tokenizer: Path, processes: int, folder: Path) -> Callable[[], int]:
    """Return the work to be measured, and its number of tokens."""
    from swiftlet.config.args import DataArgs
    from swiftlet.data.prepare import prepare
    from swiftlet.data.template import build_template
    from swiftlet.data.tokenizer import load_tokenizer

    args = DataArgs(dataset=(str(rows),), preprocess_num_proc=processes)

    def work() -> int:
        template = build_template(load_tokenizer(tokenizer))
        made = prepare(args, template, max_length=2048, cache_dir=folder / "cache", bad_rows=None)
        stores = [made.train, *([made.val] if made.val else [])]
        return sum(int(store.lengths.sum(dtype="int64")) for store in stores)

    return work


def run_peer(rows: Path, tokenizer: Path, processes: int, folder: Path) -> Callable[[], int]:
    """Return the work to be measured, and its number of tokens."""
    import datasets
    import pyarrow.compute
    from transformers import AutoTokenizer

    def work() -> int:
        tool = AutoTokenizer.from_pretrained(tokenizer)

        def encode(row: dict[str, str]) -> dict[str, Any]:
            messages = [
                {"role": "user", "content": row["query"]},
                {"role": "assistant", "content": row["response"]},
            ]
            return {"input_ids": tool.apply_chat_template(messages, return_dict=False)}

        loaded = datasets.load_dataset(
            "json", data_files=str(rows), split="train", cache_dir=str(folder / "cache")
        )
        made = loaded.map(encode, num_proc=processes, remove_columns=loaded.column_names)
        return int(pyarrow.compute.sum(pyarrow.compute.list_value_length(made.data["input_ids"])).as_py())

    return work


VARIANTS = {"ours": run_ours, "peer": run_peer}


def memory_bytes(root: psutil.Process) -> int:
    """Return the memory of a process and of all that it has started, shared pages counted once."""
    total = 0
    with suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):  # one that ends meanwhile
                total += process.memory_full_info().pss
    return total


def measure(words: list[str]) -> dict[str, Any]:
    """Run one variant in a process of its own and watch its memory."""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.Popen(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
    )
    root, peak = psutil.Process(run.pid), 0
    while run.poll() is None:
        peak = max(peak, memory_bytes(root))
        time.sleep(GLANCE_S)
    output = run.stdout.read() if run.stdout else b""
    if run.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit code {run.returncode}")
    return {**json.loads(output.splitlines()[-1]), "peak_mib": round(peak / 2**20, 1)}


def run_alone(args: argparse.Namespace) -> None:
    """Run one variant here and print what it took."""
    with tempfile.TemporaryDirectory(prefix="swiftlet-bench-") as folder:
        work = VARIANTS[args.alone](args.file, args.tokenizer, args.processes, Path(folder))
        before, started = os.times(), time.perf_counter()
        num_tokens = work()
        seconds, after = time.perf_counter() - started, os.times()
    processor_s = sum(after[:4]) - sum(before[:4])
    print(
        json.dumps({"tokens": num_tokens, "seconds": round(seconds, 2), "processor_s": round(processor_s, 2)})
    )


def main() -> None:
    """Measure every variant for every number of rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=EMBEDDED["tiny-math-chat"],
        help="folder with a tokenizer and a chat template",
    )
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--alone", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        run_alone(args)
        return
    for number in args.rows:
        with tempfile.TemporaryDirectory(prefix="swiftlet-bench-") as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, number)
            for name in args.variants:
                words = ["--alone", name, "--file", str(path), "--tokenizer", str(args.tokenizer)]
                found = measure([*words, "--processes", str(args.processes)])
                rates = {
                    "rows_per_s": round(number / found["seconds"]),
                    "rows_per_processor_s": round(number / found["processor_s"]),
                }
                print(json.dumps({"variant": name, "rows": number, **found, **rates}), flush=True)


if __name__ == "__main__":
    main()
