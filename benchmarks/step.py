"""One training step, measured: seconds, tokens/s, share of the GEMM rate, peak memory above the model, loss.

python benchmarks/step.py --size 60m --vocabulary 151936 --dtype fp32 --variants padded ours

The variants run interleaved in one process (A B A B), so that their ratios hold on a busy machine; seconds are those
of the processor. Memory is measured once a variant in a process of its own. A step is forward and backward over one
batch of samples with LoRA on all linear layers; the optimizer is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Size(NamedTuple):
    """Geometry of a model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int


SIZES = {
    "2m": Size(4, 192, 512, 4, 2),
    "60m": Size(8, 512, 1376, 8, 4),
    "500m": Size(24, 896, 4864, 14, 2),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = {
    "padded": "transformers and peft on a padded batch with full logits",
    "padded-gc": "the same, recomputing each layer in the backward pass",
    "ours": "packed, labelled positions in chunks, fused",
    "ours-plain": "packed, labelled positions in chunks, peft's LoRA and the model's own operators",
    "ours-gc": "ours, recomputing each layer in the backward pass",
}
IGNORE_INDEX = -100


class Samples(NamedTuple):
    """Token ids and labels of a batch, one tensor a sample."""

    ids: list[Tensor]
    labels: list[Tensor]


def draw_samples(number: int, vocabulary: int, seed: int = 0) -> Samples:
    """Return chat-like samples: 40 to 400 tokens, log-normal, the second half labelled."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(150), 0.6, number), 40, 400).astype(int)
    ids = [torch.from_numpy(random.integers(3, vocabulary, length)) for length in lengths]
    labels = [part.clone() for part in ids]
    for part in labels:
        part[: len(part) // 2] = IGNORE_INDEX
    return Samples(ids, labels)


def build_model(size: Size, vocabulary: int, dtype: torch.dtype, dropout: float) -> nn.Module:
    """Return a random Qwen2 with LoRA r 8 on all linear layers; adapters are fp32."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = Qwen2ForCausalLM(config).to(dtype)
    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear")
    tuned = get_peft_model(model, lora)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned.train()


def padded_step(model: nn.Module, samples: Samples) -> Callable[[], Tensor]:
    """Return the step of the field's defaults: padding, logits of all positions, cross entropy in fp32."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad(samples.ids, batch_first=True)
    labels = pad(samples.labels, batch_first=True, padding_value=IGNORE_INDEX)
    mask = pad([torch.ones_like(part) for part in samples.ids], batch_first=True)
    count = sum(int((part[1:] != IGNORE_INDEX).sum()) for part in samples.labels)

    def step() -> Tensor:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach() * count

    return step


def packed_step(model: nn.Module, samples: Samples, options: dict[str, Any]) -> Callable[[], Tensor]:
    """Return our step."""
    from swiftlet.models.causal import build_causal

    causal = build_causal(model, **options)
    causal.train()
    ids, labels = torch.cat(samples.ids), torch.cat(samples.labels)
    lengths = [len(part) for part in samples.ids]
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = [0, *np.cumsum(lengths).tolist()]
    count = sum(int((part != IGNORE_INDEX).sum()) for part in samples.labels)

    def step() -> Tensor:
        losses = causal(ids, positions, cu_seqlens, labels)
        (losses.loss_sum / count).backward()
        return losses.loss_sum.detach()

    return step


def build_step(variant: str, arguments: argparse.Namespace, samples: Samples) -> Callable[[], Tensor]:
    """Return one step of a variant over a model of its own; gradients are cleared first."""
    model = build_model(
        SIZES[arguments.size], arguments.vocabulary, DTYPES[arguments.dtype], arguments.dropout
    )
    is_recomputing = variant.endswith("-gc")
    if variant.startswith("padded"):
        if is_recomputing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        inner = padded_step(model, samples)
    else:
        options = {"use_fused": variant != "ours-plain", "gradient_checkpointing": is_recomputing}
        inner = packed_step(model, samples, options)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        return inner()

    return step


def floor_flops(size: Size, vocabulary: int, samples: Samples) -> float:
    """Return the operations of a LoRA step that cannot be left out: 4 N a token, causal attention, labelled logits."""
    head_size = size.hidden // size.heads
    attention = size.hidden * (2 * size.heads + 2 * size.kv_heads) * head_size
    linear = size.layers * (attention + 3 * size.hidden * size.intermediate)
    lengths = [len(part) for part in samples.ids]
    num_labels = sum(int((part != IGNORE_INDEX).sum()) for part in samples.labels)
    # Scores and their product with the values: 4 h s forward and 2.5 times that backward, half of it causal.
    scores = size.layers * sum(0.5 * 3.5 * 4 * size.heads * head_size * length**2 for length in lengths)
    return 4 * linear * sum(lengths) + scores + 4 * size.hidden * vocabulary * num_labels


def gemm_rate(dtype: torch.dtype, edge: int = 1024) -> float:
    """Return the rate of a square product [FLOP/s of processor time]."""
    left, right = (torch.randn(edge, edge).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.process_time()
        torch.mm(left, right)
        best = min(best, time.process_time() - start)
    return 2 * edge**3 / best


def peak_above_model(variant: str, arguments: argparse.Namespace, samples: Samples) -> int:
    """Return the bytes by which two steps grow this process over its model. Source: proc(5), VmHWM."""
    step = build_step(variant, arguments, samples)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status_kb("VmRSS")
    for _ in range(2):
        step()
    return (_status_kb("VmHWM") - before) * 1024


def _status_kb(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:"))


def measured_peaks(arguments: argparse.Namespace) -> dict[str, int]:
    """Return the peak memory of each variant, each in a process of its own."""
    peaks = {}
    for variant in arguments.variants:
        command = [sys.executable, __file__, "--memory_of", variant]
        for name in ("size", "vocabulary", "dtype", "dropout", "samples", "threads"):
            command += [f"--{name}", str(getattr(arguments, name))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[variant] = int(done.stdout.split()[-1])
    return peaks


def measured_seconds(arguments: argparse.Namespace, samples: Samples) -> dict[str, dict[str, Any]]:
    """Return the processor seconds of each variant, interleaved after one warm-up, and its loss."""
    steps = {variant: build_step(variant, arguments, samples) for variant in arguments.variants}
    losses = {variant: float(step()) for variant, step in steps.items()}
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(arguments.repeats):
        for variant, step in steps.items():
            start = time.process_time()
            step()
            seconds[variant].append(time.process_time() - start)
    return {variant: {"seconds": seconds[variant], "loss_sum": losses[variant]} for variant in steps}


def main() -> None:
    """Measure and print a table and, with --out, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="60m")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["padded", "ours"])
    parser.add_argument(
        "--no_memory", action="store_true", help="leave out the processes that measure memory"
    )
    parser.add_argument("--memory_of", choices=VARIANTS, help="print the peak memory of one variant and end")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    samples = draw_samples(arguments.samples, arguments.vocabulary)
    if arguments.memory_of:
        print(peak_above_model(arguments.memory_of, arguments, samples))
        return
    peaks = {} if arguments.no_memory else measured_peaks(arguments)
    results = measured_seconds(arguments, samples)
    rate = gemm_rate(DTYPES[arguments.dtype])
    flops, num_tokens = (
        floor_flops(SIZES[arguments.size], arguments.vocabulary, samples),
        sum(map(len, samples.ids)),
    )
    first = statistics.median(results[arguments.variants[0]]["seconds"])
    print(f"{num_tokens} tokens, GEMM {rate / 1e9:.0f} GFLOP/s, floor {flops / 1e9:.0f} GFLOP")
    for variant, result in results.items():
        median = statistics.median(result["seconds"])
        result |= {
            "median_s": median,
            "speedup": first / median,
            "tokens_per_s": num_tokens / median,
            "share_of_gemm_rate": flops / median / rate,
            "peak_above_model_bytes": peaks.get(variant),
        }
        memory = f"{peaks[variant] / 1e6:8.0f} MB" if variant in peaks else ""
        share = result["share_of_gemm_rate"]
        print(
            f"{variant:12} {median:7.2f} s {first / median:6.2f}x {share:5.0%} {memory} loss {result['loss_sum']:.3f}"
        )
    if arguments.out:
        settings = {key: value for key, value in vars(arguments).items() if key != "out"}
        text = json.dumps({"settings": settings, "gemm_flops": rate, "variants": results}, indent=1)
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
