"""Steps on an accelerator: tokens/s, MFU against the GEMM rate measured there, peak memory, and where the time goes.

python benchmarks/accelerator.py --device cuda --sizes qwen2.5-0.5b qwen2.5-7b --tuners lora full --out h200.json
python benchmarks/accelerator.py --device cpu --sizes 2m --vocabulary 8192 --tokens 512 --dtype fp32   # a rehearsal

Random weights with the geometry of Qwen2.5, chat-like samples that add up to --tokens. MFU counts 4 N (LoRA) or 6 N
(full) a token, attention and labelled logits, and never what is recomputed. A variant that runs out of memory or lacks
a package is reported as such. TRL as a whole process is compared by peers.py.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from pathlib import Path
from typing import Any

import torch
from report import facts, markdown, parser_of, write
from stepping import (
    DTYPES,
    VARIANTS,
    Samples,
    Setting,
    build_step,
    clock,
    draw_samples,
    floor_flops,
    gemm_rate,
)
from torch.profiler import ProfilerActivity, profile
from workload import SIZES, draw_lengths

SHOWN = 12


def samples_of(num_tokens: int, vocabulary: int) -> Samples:
    """Return chat-like samples that add up to about so many tokens."""
    lengths: list[int] = []
    for length in draw_lengths(num_tokens // 40 + 1):
        if sum(lengths) + length <= num_tokens:
            lengths.append(length)
    return draw_samples(lengths, vocabulary)


def where_time_goes(step: Any, device: str) -> list[dict[str, Any]]:
    """Return the operators with the most time of their own in one step."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=kinds) as trace:
        step()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = sorted(trace.key_averages(), key=lambda one: -getattr(one, name))
    total = sum(getattr(one, name) for one in found)
    return [
        {"name": one.key, "share": getattr(one, name) / max(total, 1e-9), "calls": one.count}
        for one in found[:SHOWN]
    ]


def measure(variant: str, setting: Setting, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Return the figures of one variant, or why there are none."""
    samples = samples_of(options.tokens, setting.vocabulary)
    is_cpu = setting.device == "cpu"
    try:
        step = build_step(variant, setting, samples)
        before = 0 if is_cpu else torch.accelerator.memory_allocated()
        loss = float(step())
        if not is_cpu:
            torch.accelerator.reset_peak_memory_stats()
        seconds = []
        for _ in range(options.repeats):
            start = clock(setting.device)
            step()
            seconds.append(clock(setting.device) - start)
        median = statistics.median(seconds)
        return {
            "variant": variant,
            "tokens": samples.num_tokens,
            "loss_sum": loss,
            "seconds": seconds,
            "tokens_per_s": samples.num_tokens / median,
            "mfu": floor_flops(setting, samples) / median / rate,
            "peak_above_model_bytes": None if is_cpu else torch.accelerator.max_memory_allocated() - before,
            "profile": where_time_goes(step, setting.device),
        }
    except (torch.OutOfMemoryError, ModuleNotFoundError) as error:
        return {"variant": variant, "failed": str(error).splitlines()[0]}


def main() -> None:
    """Measure all sizes and tuners, print a table, and write JSON after each."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"]
    )
    parser.add_argument("--tuners", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=["padded", "padded-gc", "liger", "liger-gc", "ours", "ours-partial", "ours-gc"],
    )
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step")
    parser.add_argument("--edge", type=int, default=8192, help="rows of the matrix product that is the limit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    rate = gemm_rate(dtype, options.device, options.edge)
    print(f"GEMM {rate / 1e12:.2f} TFLOP/s in {options.dtype}")
    settings = [(name, tuner) for name in options.sizes for tuner in options.tuners]
    found: dict[str, list[dict[str, Any]]] = {f"{name} {tuner}": [] for name, tuner in settings}
    result = {"facts": facts(options), "gemm_flops": rate, "settings": found}
    # Liger changes classes of transformers for good, so it comes last.
    for variant in sorted(options.variants, key=lambda one: one.startswith("liger")):
        for name, tuner in settings:
            setting = Setting(SIZES[name], options.vocabulary, dtype, tuner, 0.05, options.device)
            found[f"{name} {tuner}"].append(measure(variant, setting, options, rate))
            if options.device != "cpu":
                gc.collect()  # a model's modules refer to each other: without it the next one starts beside it
                torch.accelerator.empty_cache()
            write(options.out, result)
    for name, variants in found.items():
        print(f"{name}\n{table(variants)}")


def table(found: list[dict[str, Any]]) -> str:
    """Return the variants of one setting as a table."""
    rows = []
    for one in found:
        if "failed" in one:
            rows.append([one["variant"], one["failed"], "", "", ""])
            continue
        speed, share, loss = f"{one['tokens_per_s']:.0f}", f"{one['mfu']:.0%}", f"{one['loss_sum']:.1f}"
        peak = one["peak_above_model_bytes"]
        rows.append([one["variant"], speed, share, "" if peak is None else f"{peak / 1e9:.1f}", loss])
    return markdown(["variant", "tokens/s", "MFU", "peak above model GB", "loss"], rows)


if __name__ == "__main__":
    main()
