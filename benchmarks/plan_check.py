"""Predicted against measured: peak memory and time of our own training step on this machine's processor.

python benchmarks/plan_check.py                      # the whole grid, one process a run, a table at the end
python benchmarks/plan_check.py --sizes 10m 60m      # a part of it
python benchmarks/plan_check.py --world-size 2       # two ranks with DDP

Models have random weights. Memory is what torch's allocator of the processor reports (torch.profiler with
profile_memory): the bytes of all tensors before the step, and the highest sum of allocations and releases in it. The
resident set would also count libraries and what malloc keeps for later. Time is that of the processor (not of the
clock, which other programs share), one thread, the median of three steps, after `swift plan --calibrate`'s measurement
with the same clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch

from swiftlet.models.geometry import Geometry

SIZES = {
    "10m": Geometry(256, 6, 4, 2, 704, 8000, tied=True, qkv_bias=True),
    "60m": Geometry(512, 8, 8, 4, 1376, 32000, qkv_bias=True),
    "500m": Geometry(896, 24, 14, 2, 4864, 151936, tied=True, qkv_bias=True),
}
LENGTHS = (128, 512, 1024)
LARGEST_FULL = 100e6  # parameters; more would need too much memory for a shared machine


class Case(NamedTuple):
    """One run: two samples of half the tokens each."""

    size: str
    sft_type: str
    tokens: int
    is_checkpointed: bool
    world_size: int


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the grid."""
    found = [
        Case(size, sft_type, tokens, is_checkpointed, options.world_size)
        for size, sft_type, tokens, is_checkpointed in product(
            options.sizes, ("lora", "full"), options.lengths, (False, True)
        )
    ]
    return [c for c in found if c.sft_type == "lora" or SIZES[c.size].num_parameters < LARGEST_FULL]


def build(case: Case) -> tuple[Any, Any, Any]:
    """Return the model, the engine and the world of a run, as `swift sft` builds them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from swiftlet.commands.plan_trace import config_of
    from swiftlet.models import tuner
    from swiftlet.models.causal import build_causal
    from swiftlet.parallel.ddp import build_ddp_engine
    from swiftlet.parallel.engine import build_single_engine
    from swiftlet.parallel.world import init_world
    from swiftlet.train.optim import OptimizerSettings, build_groups, build_optimizer

    torch.manual_seed(0)
    config = config_of(SIZES[case.size])
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    if case.sft_type == "full":
        tuner.apply_full(model)
    else:
        model = tuner.apply_lora(model, tuner.LoraSettings())
    causal = build_causal(model, gradient_checkpointing=case.is_checkpointed)
    causal.train()
    world = init_world("gloo", torch.device("cpu"))
    settings = OptimizerSettings(learning_rate=1e-4)
    optimizer = build_optimizer("adamw_torch", build_groups(model, settings), settings)
    if world.is_alone:
        return causal, build_single_engine(model, optimizer), world
    return causal, build_ddp_engine(model, optimizer, world), world


def step_of(case: Case, causal: Any, engine: Any, world: Any) -> Any:
    """Return a function that makes one optimizer step."""
    from swiftlet.data.batching import MicroBatch, Step
    from swiftlet.data.loader import LoadedStep
    from swiftlet.train.objective import compute_gradient

    half = case.tokens // 2
    ids = torch.randint(3, SIZES[case.size].vocab, (case.tokens,))
    labels = ids.clone()
    labels[[0, half]] = -100
    positions = torch.cat([torch.arange(half), torch.arange(case.tokens - half)])
    batch = MicroBatch(ids, labels, positions, [0, half, case.tokens], [0, 1])
    step = LoadedStep(Step(0, 0, [0, 1], case.tokens, case.tokens - 2, [[0, 1]]), [batch])

    def make() -> None:
        compute_gradient(
            causal, engine, world, step, device=torch.device("cpu"), step=1, is_stop_requested=False
        )
        engine.update(0.5)

    return make


def resident_bytes(causal: Any, engine: Any) -> int:
    """Return the bytes of parameters, buffers, gradients and the optimizer's state, each storage once."""
    tensors = [*causal.parameters(), *causal.buffers(), *(t for _, t in engine.optimizer_tensors())]
    tensors += [p.grad for p in causal.parameters() if p.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def peak_rise(make: Any) -> int:
    """Return the highest sum of what the allocator gave and took back during one step [bytes]."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        make()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def measure(case: Case) -> dict[str, float]:
    """Return the measured and the predicted figures of one run, in this process."""
    from swiftlet.commands import calibration
    from swiftlet.device.cpu import open_this
    from swiftlet.plan.cards import host_card
    from swiftlet.plan.memory import Setting, estimate
    from swiftlet.plan.timing import Load, micro_batch, update

    torch.set_num_threads(1)
    device = replace(open_this(0), default_dtype="fp32")
    card = host_card(16, calibration.measure(device, time.process_time) | {"date": "now"})
    causal, engine, world = build(case)
    make = step_of(case, causal, engine, world)
    make()
    times = []
    for _ in range(3):
        start = time.process_time()
        make()
        times.append(time.process_time() - start)
    memory = resident_bytes(causal, engine) + peak_rise(make)
    sizes = SIZES[case.size]
    setting = Setting(
        itemsize=4,
        tokens=case.tokens,
        labels=case.tokens - 2,
        is_full=case.sft_type == "full",
        is_checkpointed=case.is_checkpointed,
        world_size=case.world_size,
    )
    half = case.tokens // 2
    load = Load(case.tokens, case.tokens - 2, half**2 + (case.tokens - half) ** 2)
    parts = micro_batch(sizes, setting, card, load, has_dropout=case.sft_type == "lora")
    seconds = parts.total + update(sizes, replace(setting, world_size=1), card).total
    return {
        "measured_bytes": memory,
        "predicted_bytes": estimate(sizes, setting).needed,
        "measured_s": statistics.median(times),
        "predicted_s": seconds,
    }


def start(case: Case) -> dict[str, float]:
    """Run one case in processes of its own and return the figures of its first rank."""
    words = [sys.executable, __file__, "--one", json.dumps(case._asdict())]
    common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    ranks = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                **common,
                **({"RANK": str(r), "WORLD_SIZE": str(case.world_size)} if case.world_size > 1 else {}),
            },
        )
        for r in range(case.world_size)
    ]
    answers = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"a process of {case} failed")
    return json.loads(answers[0].splitlines()[-1])


def main() -> None:
    """Print a line a run and the largest deviations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Case(**json.loads(options.one)))))
        return
    memory, seconds = [], []
    print(f"{'run':<32}{'measured':>10}{'predicted':>10}{'':>8}   {'measured':>9}{'predicted':>10}")
    for case in cases(options):
        found = start(case)
        memory.append(found["predicted_bytes"] / found["measured_bytes"] - 1)
        seconds.append(found["predicted_s"] / found["measured_s"] - 1)
        name = f"{case.size} {case.sft_type} {case.tokens}{' ckpt' if case.is_checkpointed else ''} x{case.world_size}"
        print(
            f"{name:<32}{found['measured_bytes'] / 2**20:>7.0f}MiB{found['predicted_bytes'] / 2**20:>7.0f}MiB"
            f"{memory[-1]:>+8.1%}   {found['measured_s']:>8.2f}s{found['predicted_s']:>9.2f}s{seconds[-1]:>+8.1%}",
            flush=True,
        )
    for what, errors in (("memory", memory), ("time", seconds)):
        worst, mean = max(map(abs, errors)), statistics.mean(map(abs, errors))
        print(f"{what}: {len(errors)} runs, {mean:.1%} off on average, {worst:.1%} at most")


if __name__ == "__main__":
    main()
