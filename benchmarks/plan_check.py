"""Predicted against measured: peak memory and time of our own training step on this machine's processor.

python benchmarks/plan_check.py                      # the whole grid, one run at a time, a table at the end
python benchmarks/plan_check.py --sizes 10m 60m      # a part of it
python benchmarks/plan_check.py --engines            # two ranks, each engine
python benchmarks/plan_check.py --out rows.json      # the figures as well

Models have random weights and are read, tuned and given to their engine by the functions of `swift sft`. Memory is
that of tensors: the storages alive before the step, and the highest sum of allocations and releases in it as torch's
own profiler of the allocator tells them. The resident set would also count libraries and what malloc keeps for later.
Time is that of the processor (not of the clock, which other programs share), one thread, the median of three steps
after a warm one, with the figures of `swift plan --calibrate` by the same clock, measured again every few runs; ranks
that wait for each other are not timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from plan_cases import CASES_A_CALIBRATION, NUM_TIMED, SIZES, Case, cases, grouped
from process import rank_environments
from report import parser_of, write

from swiftlet.device.settings import environment
from swiftlet.plan.strategies import FLAGS


def write_model(size: str, folder: Path) -> None:
    """Write a model of random weights, unless it is there."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from swiftlet.commands.plan_trace import config_of

    if not folder.exists():
        torch.manual_seed(0)
        config = config_of(SIZES[size])
        MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).bfloat16().save_pretrained(folder)


def build(case: Case, folder: Path) -> tuple[Any, Any]:
    """Return the trainer and the world of a run, as `swift sft` builds them."""
    from swiftlet.commands.engine_setup import build_engine
    from swiftlet.commands.model_setup import build_model
    from swiftlet.commands.sft import Setup
    from swiftlet.config.args import SftArgs
    from swiftlet.config.fields import with_values
    from swiftlet.device.cpu import open_this
    from swiftlet.parallel.world import init_world

    flags = FLAGS[case.engine]
    args = with_values(
        SftArgs(),
        dtype="fp32",
        sft_type=case.sft_type,
        gradient_checkpointing=case.recompute,
        batch_size=2,
        learning_rate=1e-4,
        gradient_accumulation_steps=1,
        **({flags[0].removeprefix("--"): flags[1]} if flags else {}),
    )
    source = SimpleNamespace(folder=folder, name=case.size)
    lengths = SimpleNamespace(train=SimpleNamespace(lengths=[case.tokens // 2] * 2))
    ready: Any = SimpleNamespace(checkpoint=None, source=source, data=lengths)
    device = replace(open_this(0), default_dtype="fp32")
    world = init_world("gloo", torch.device("cpu"), always=case.engine != "none")
    setup = Setup(args, ready, device, world)
    causal = build_model(setup)
    causal.train()
    return build_engine(setup, causal), world


def step_of(case: Case, trainer: Any, world: Any) -> Any:
    """Return a function that makes one optimizer step."""
    from swiftlet.data.batching import MicroBatch, Step
    from swiftlet.data.loader import LoadedStep
    from swiftlet.train.objective import compute_gradient

    half = case.tokens // 2
    ids = torch.randint(3, SIZES[case.size].vocab, (case.tokens,))
    targets = ids.roll(-1)
    targets[[half - 1, -1]] = -100
    positions = torch.cat([torch.arange(half), torch.arange(case.tokens - half)])
    batch = MicroBatch(ids, targets, positions, [0, half, case.tokens], [0, 1])
    number = (case.tokens - 2) * case.world_size
    step = LoadedStep(Step(0, 0, [0, 1], case.tokens, number, [[0, 1]]), [batch])

    def make() -> None:
        compute_gradient(
            trainer.module,
            trainer.engine,
            world,
            step,
            device=torch.device("cpu"),
            step=1,
            is_stop_requested=False,
        )
        trainer.engine.update(0.5)

    return make


def resident_bytes() -> int:
    """Return the bytes of all tensors that this process holds, each storage once."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    found += [t.grad for t in found if t.is_leaf and t.grad is not None]
    plain = [t for t in found if type(t) in (torch.Tensor, torch.nn.Parameter) and not t.is_meta]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain}.values())


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


def calibrated() -> Any:
    """Return this machine's processor as a device, measured now."""
    from swiftlet.commands import calibration
    from swiftlet.device.cpu import open_this
    from swiftlet.plan.cards import host_card

    device = replace(open_this(0), default_dtype="fp32")
    return host_card(16, calibration.measure(device, time.process_time) | {"date": "now"})


def measure(case: Case, folder: Path, card: Any) -> dict[str, float]:
    """Return the measured and the predicted figures of one run, in this process; no time without a card."""
    from swiftlet.models import arena
    from swiftlet.plan.memory import estimate, host_bytes
    from swiftlet.plan.setting import Setting

    arena.SMALLEST = sys.maxsize  # every tensor is torch's: its profiler knows of no other
    torch.set_num_threads(1)
    trainer, world = build(case, folder)
    make = step_of(case, trainer, world)
    make()
    times = []
    for _ in range(NUM_TIMED if card else 0):
        start = time.process_time()
        make()
        times.append(time.process_time() - start)
    memory = resident_bytes() + peak_rise(make)
    setting = Setting(
        itemsize=4,
        tokens=case.tokens,
        labels=case.tokens - 2,
        is_full=case.sft_type == "full",
        recompute=case.recompute,
        world_size=case.world_size,
        engine=case.engine,
        is_host=True,
    )
    predicted = estimate(SIZES[case.size], setting)
    # The host is the device.
    needed = predicted.needed + host_bytes(SIZES[case.size], setting) / case.world_size
    found = {"measured": memory, "predicted": needed, "buckets": predicted.buckets}
    if not card:
        return found
    seconds = predicted_seconds(case, setting, card)
    return found | {"measured_s": statistics.median(times), "predicted_s": seconds}


def predicted_seconds(case: Case, setting: Any, card: Any) -> float:
    """Return the seconds of a step of one rank."""
    from swiftlet.plan.timing import Load, micro_batch, update

    half = case.tokens // 2
    load = Load(case.tokens, case.tokens - 2, half**2 + (case.tokens - half) ** 2)
    sizes, has_dropout = SIZES[case.size], case.sft_type == "lora"
    return (
        micro_batch(sizes, setting, card, load, has_dropout=has_dropout).total
        + update(sizes, setting, card).total
    )


def start(group: list[Case], folder: Path) -> Iterator[dict[str, float]]:
    """Run cases of as many processes as they have ranks; yield the figures of the first rank."""
    words = [sys.executable, __file__, "--run", json.dumps(group), "--folder", str(folder)]
    with tempfile.TemporaryFile("w+") as errors:
        ranks = []
        for environ in rank_environments(group[0].world_size):
            output = subprocess.DEVNULL if ranks else subprocess.PIPE
            environ |= environment("cpu", {})
            ranks.append(subprocess.Popen(words, stdout=output, stderr=errors, text=True, env=environ))
        yield from (json.loads(line) for line in ranks[0].stdout or () if line.startswith('{"measured"'))
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            errors.seek(0)
            raise SystemExit(f"a process of {group[0].name} failed:\n{errors.read()[-2000:]}")


def line_of(case: Case, found: dict[str, float]) -> str:
    """Return a row of the table; a bucket that DeepSpeed asks for whole is left out of the difference."""
    text = (
        f"| {case.name} | {found['measured'] / 2**20:.0f} | {found['predicted'] / 2**20:.0f} | "
        f"{memory_error(found):+.1%} | "
    )
    if "measured_s" not in found:
        return f"{text} | | |"
    error = found["predicted_s"] / found["measured_s"] - 1
    return f"{text}{found['measured_s']:.2f} | {found['predicted_s']:.2f} | {error:+.0%} |"


def memory_error(found: dict[str, float]) -> float:
    """Return how far the prediction is off, the buckets left out on both sides."""
    return (found["predicted"] - found["buckets"]) / (found["measured"] - found["buckets"]) - 1


def main() -> None:
    """Print a line a run and the largest deviations."""
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--engines", nargs="*", choices=list(FLAGS), help="of runs on two ranks")
    parser.add_argument("--folder", type=Path, help="where the models are written, and stay")
    parser.add_argument("--out", type=Path, help="file of the figures")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        card = None
        for number, case in enumerate(Case(*values) for values in json.loads(options.run)):
            if case.world_size == 1 and number % CASES_A_CALIBRATION == 0:
                card = calibrated()
            print(json.dumps(measure(case, options.folder / case.size, card)), flush=True)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, rows = options.folder or Path(name), []
        print("| run | measured MiB | predicted MiB | | measured s | predicted s | |\n" + "|---" * 7 + "|")
        for group in grouped(cases(options)):
            write_model(group[0].size, folder / group[0].size)
            for case, found in zip(group, start(group, folder), strict=True):
                rows.append({**case._asdict(), **found})
                print(line_of(case, found), flush=True)
                write(options.out, rows)
    errors = {"memory": [memory_error(row) for row in rows]}
    errors["time"] = [row["predicted_s"] / row["measured_s"] - 1 for row in rows if "measured_s" in row]
    for what, values in errors.items():
        if values:
            worst, mean = max(map(abs, values)), statistics.mean(map(abs, values))
            print(f"{what}: {len(values)} runs, {mean:.1%} off on average, {worst:.1%} at most")


if __name__ == "__main__":
    main()
