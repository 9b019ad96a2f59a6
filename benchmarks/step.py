"""One training step and the machine's limit: seconds, tokens/s, share of the GEMM rate, peak memory, loss.

python benchmarks/step.py --size 60m --vocabulary 151936 --dtype fp32 --variants padded ours

The variants run interleaved in one process (A B A B), so that their ratios hold on a busy machine; seconds are those
of the processor, and the rate of a large matrix product is measured in every round beside them. Memory is measured
once a variant in a process of its own. A step is forward and backward over one batch; the optimizer is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from process import status_bytes
from report import facts, parser_of, write
from stepping import (
    DTYPES,
    VARIANTS,
    Samples,
    Setting,
    build_step,
    chat_samples,
    clock,
    draw_samples,
    floor_flops,
    gemm_rate,
)
from workload import SIZES


def setting_of(options: argparse.Namespace) -> Setting:
    """Return what the command line asks for."""
    return Setting(
        SIZES[options.size],
        options.vocabulary,
        DTYPES[options.dtype],
        options.tuner,
        options.dropout,
        options.device,
    )


def samples_of(options: argparse.Namespace) -> Samples:
    """Return chat-like samples, or samples of one length."""
    if options.length:
        return draw_samples([options.length] * options.samples, options.vocabulary)
    return chat_samples(options.samples, options.vocabulary)


def peak_above_model(variant: str, setting: Setting, samples: Samples) -> int:
    """Return the bytes by which two steps grow the memory over the model. Source: proc(5), VmHWM."""
    step = build_step(variant, setting, samples)
    if setting.device != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = status_bytes("VmRSS")
    for _ in range(2):
        step()
    is_cpu = setting.device == "cpu"
    return (status_bytes("VmHWM") if is_cpu else torch.accelerator.max_memory_allocated()) - before


def measured_peak(variant: str, options: argparse.Namespace) -> int:
    """Return the peak memory of a variant, in a process of its own."""
    command = [sys.executable, __file__, "--memory_of", variant]
    for name in "size vocabulary dtype tuner dropout samples length threads device".split():
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure(options: argparse.Namespace, setting: Setting, samples: Samples) -> dict[str, dict[str, Any]]:
    """Return seconds of each variant and round, the GEMM rate of that round, and the loss; one step is a warm-up."""
    steps = {variant: build_step(variant, setting, samples) for variant in options.variants}
    found: dict[str, dict[str, Any]] = {
        variant: {"loss_sum": float(step()), "seconds": [], "gemm_flops": []}
        for variant, step in steps.items()
    }
    for _ in range(options.repeats):
        for variant, step in steps.items():
            rate = gemm_rate(setting.dtype, setting.device, options.edge)
            start = clock(setting.device)
            step()
            found[variant]["seconds"].append(clock(setting.device) - start)
            found[variant]["gemm_flops"].append(rate)
    return found


def summarise(found: dict[str, dict[str, Any]], flops: float, num_tokens: int) -> None:
    """Add medians, ratios and shares to what was measured."""
    first = statistics.median(next(iter(found.values()))["seconds"])
    for result in found.values():
        median = statistics.median(result["seconds"])
        pairs = zip(result["seconds"], result["gemm_flops"], strict=True)
        result |= {
            "median_s": median,
            "speedup": first / median,
            "tokens_per_s": num_tokens / median,
            "share_of_gemm_rate": statistics.median(flops / seconds / rate for seconds, rate in pairs),
        }


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print a line a variant."""
    for variant, result in found.items():
        peak = result.get("peak_above_model_bytes")
        print(
            f"{variant:12} {result['median_s']:8.3f} s {result['speedup']:6.2f}x "
            f"{result['tokens_per_s']:8.0f} tokens/s {result['share_of_gemm_rate']:5.0%} of "
            f"{statistics.median(result['gemm_flops']) / 1e9:.0f} GFLOP/s "
            f"{'' if peak is None else f'{peak / 1e6:.0f} MB '}loss {result['loss_sum']:.3f}"
        )


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="60m")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--tuner", choices=["lora", "full"], default="lora")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=0, help="tokens of each sample; 0 for those of chats")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--edge", type=int, default=1024, help="rows of the matrix product that is the limit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["padded", "ours"])
    parser.add_argument(
        "--no_memory", action="store_true", help="leave out the processes that measure memory"
    )
    parser.add_argument("--memory_of", choices=VARIANTS, help="print the peak memory of one variant and end")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print a table and, with --out, write JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    setting, samples = setting_of(options), samples_of(options)
    if options.memory_of:
        print(peak_above_model(options.memory_of, setting, samples))
        return
    found = measure(options, setting, samples)
    if not options.no_memory:
        for variant, result in found.items():
            result["peak_above_model_bytes"] = measured_peak(variant, options)
    flops = floor_flops(setting, samples)
    summarise(found, flops, samples.num_tokens)
    print(f"{samples.num_tokens} tokens, floor {flops / 1e9:.0f} GFLOP a step")
    show(found)
    result = {"facts": facts(options), "tokens": samples.num_tokens, "floor_flops": flops, "variants": found}
    write(options.out, result)


if __name__ == "__main__":
    main()
