"""`swift plan`: memory and time of an sft command line, before a byte of weights is read. No torch but for --trace."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swiftlet.commands.calibration import calibrate, measured_here
from swiftlet.commands.console import Output
from swiftlet.commands.model_source import unknown_names
from swiftlet.commands.plan_chart import draw
from swiftlet.commands.plan_report import Answer, show, to_json
from swiftlet.commands.planning import Subject, build_subject, job_of
from swiftlet.config.args import (
    DEVICES,
    DataArgs,
    GenerationArgs,
    ModelArgs,
    OutputArgs,
    ParallelArgs,
    TrainArgs,
    TunerArgs,
)
from swiftlet.config.check import check_sft
from swiftlet.config.fields import arg
from swiftlet.config.parse import Parsed
from swiftlet.config.resolve import resolve_sft
from swiftlet.device.inventory import cpu_has_native_bf16, find_device
from swiftlet.device.visible import PROCESSES, VISIBLE, processes_per_node, read_whole
from swiftlet.errors import SwiftletError, UsageError, raise_all
from swiftlet.plan.cards import Card, find_card, host_card, parse_devices, with_measured
from swiftlet.plan.strategies import (
    NO,
    Job,
    Way,
    advise,
    devices_needed,
    different,
    levels_asked,
    way_of,
    ways,
)

NODES = "NNODES"
WIDTH = 110  # of what goes into a file or a pipe
KEPT = (*VISIBLE, NODES, "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")  # of the environment, in commands
CHARTS = (".png", ".svg", ".html")
EXAMPLE = (
    "NPROC_PER_NODE=4 swift plan --device 4x910B3 --model_type qwen1half-7b-chat --dataset blossom-math-zh "
    "--num_train_epochs 5 --sft_type lora"
)


@dataclass(frozen=True)
class PlannedParallelArgs(ParallelArgs):
    """Devices"""

    device: str = arg(
        "AUTO",
        "What to plan for: 8x910B3, 1xH200, 4xA100-80G, or a kind as for sft; this machine when not given",
    )


@dataclass(frozen=True)
class PlanOutputArgs:
    """Plan"""

    json: bool = arg(False, "Print one JSON object instead of tables")
    chart: str | None = arg(None, "Write a bar chart of the memory into this file: .png, .svg or .html")
    trace: bool = arg(False, "Also run the step itself on fake tensors and compare (imports torch)")
    calibrate: bool = arg(
        False, "Measure launch time, bandwidth and matrix rate of this machine, and keep them"
    )


@dataclass(frozen=True)
class PlanArgs:
    """Predict memory and time of an sft command line, and rank the ways to run it."""

    plan: PlanOutputArgs = field(default_factory=PlanOutputArgs)
    model: ModelArgs = field(default_factory=ModelArgs)
    tuner: TunerArgs = field(default_factory=TunerArgs)
    data: DataArgs = field(default_factory=DataArgs)
    train: TrainArgs = field(default_factory=TrainArgs)
    output: OutputArgs = field(default_factory=OutputArgs)
    parallel: PlannedParallelArgs = field(default_factory=PlannedParallelArgs)
    generation: GenerationArgs = field(default_factory=GenerationArgs)


ARGS = PlanArgs


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    if parsed.args.plan.calibrate:
        return list(parsed.mistakes)
    mistakes = [*check_sft(parsed), *unknown_names(parsed.args.model, parsed.args.data, is_trained=True)]
    chart, device = parsed.args.plan.chart, parsed.args.parallel.device
    if chart is not None and not chart.endswith(CHARTS):
        mistakes.append(
            UsageError(f"--chart {chart}: a chart is {', '.join(CHARTS)}", "type --chart memory.png")
        )
    if device not in DEVICES:
        try:
            parse_devices(device)
        except UsageError as mistake:
            mistakes.append(mistake)
    return mistakes


def run(parsed: Parsed) -> int:
    """Print the plan; a run that cannot fit is an answer, not a failure."""
    if parsed.args.plan.calibrate:
        calibrate(parsed.args.parallel.device)
        return 0
    answer = make_answer(parsed, os.environ)
    if parsed.args.plan.json:
        print(json.dumps(to_json(answer), ensure_ascii=False, indent=2))
    else:
        console = Output()
        show(answer, console if console.is_terminal else Output(width=WIDTH))
    if parsed.args.plan.chart:
        draw(answer, parsed.args.plan.chart)
        print(parsed.args.plan.chart, file=sys.stderr)
    return 0


def make_answer(parsed: Parsed, environ: Mapping[str, str]) -> Answer:
    """Return the plan of a command line.

    Raises:
        SwiftletError: the device, the model or the data are not known here.
    """
    card, number, note = choose_card(parsed.args.parallel.device, environ)
    world_size = number_of_processes(environ, number)
    args = resolve_sft(parsed.args, world_size)
    subject = build_subject(args, card, world_size, dtype_of(args.model.dtype, card))
    job = job_of(subject)
    budgets = different(job, subject.budgets)
    asked = args.train.gradient_checkpointing
    advice = advise(job, budgets, levels_asked(job, asked))
    chosen = advice.way or advice.nearest
    if advice.way is None:
        budgets = different(job, subject.budgets_to_propose)
    table = ways(job, budgets)
    traced = _trace(subject, job, chosen) if args.plan.trace else None
    is_enough = any(way.figures.verdict != NO and not way.engine.endswith("offload") for way in table)
    more = None if is_enough else devices_needed(job, budgets)
    start = command_start(world_size, environ)
    words = command_words(parsed)
    return Answer(subject, job, note, chosen, advice.way is not None, table, start, words, traced, more)


def choose_card(asked: str, environ: Mapping[str, str]) -> tuple[Card, int | None, str]:
    """Return the device to plan for, how many of them were named, and how it was found.

    Raises:
        UsageError: the table has no such device.
    """
    if asked not in DEVICES:
        number, card = parse_devices(asked)
        return card, number, "named by --device"
    found = find_device(asked, environ)
    if not found.name:
        share = processes_here(number_of_processes(environ, None), environ)
        return host_card((found.total_gib or 0.0) / share, measured_here("cpu", environ)), None, found.note
    known = find_card(found.name)
    if known is None:
        raise UsageError(
            f"{found.name} is not in the table of devices", "name a similar one: --device 8x910B3"
        )
    card = replace(known, memory_gib=found.total_gib or known.memory_gib)
    return with_measured(card, measured_here(card.name, environ)), None, found.note


def number_of_processes(environ: Mapping[str, str], named: int | None) -> int:
    """Return the processes of the run: NPROC_PER_NODE x NNODES, else the devices of --device, else those of a launch.

    Raises:
        UsageError: a variable is no number, or asks for more than --device names or for unequal machines.
    """
    mistakes: list[SwiftletError] = []
    processes = read_whole(environ, PROCESSES, 0, 1, mistakes)
    num_nodes = read_whole(environ, NODES, 1, 1, mistakes)
    raise_all(mistakes)
    if named is None:
        return (processes or processes_per_node(environ)) * num_nodes
    total = processes * num_nodes
    if not total and named % num_nodes:
        more = named + num_nodes - named % num_nodes
        raise UsageError(
            f"{named} devices are not as many on each of {NODES}={num_nodes} machines",
            f"type --device {more}x...",
        )
    if total > named:
        raise UsageError(
            f"{total} processes do not have a device each of {named}", f"type --device {total}x..."
        )
    return total or named


def processes_here(world_size: int, environ: Mapping[str, str]) -> int:
    """Return how many of the run's processes share this machine."""
    return world_size // read_whole(environ, NODES, 1, 1, [])


def dtype_of(asked: str, card: Card) -> str:
    """Return the type of the weights: as asked, or the device's own choice.

    Raises:
        UsageError: the device does not have the type that was asked for.
    """
    if asked == "bf16" and not card.has_bf16:
        raise UsageError(f"{card.name} does not have bf16; it has fp16, fp32", "type --dtype fp32")
    if asked != "AUTO":
        return asked
    has_bf16 = cpu_has_native_bf16() if card.is_host else card.has_bf16
    return "bf16" if has_bf16 else "fp32"


def command_start(world_size: int, environ: Mapping[str, str]) -> list[str]:
    """Return the variables of a pasted command: those of the devices and machines as given, and the processes."""
    found = [f"{name}={environ[name]}" for name in KEPT if environ.get(name)]
    here = processes_here(world_size, environ)
    return [f"{PROCESSES}={here}", *found] if here > 1 else found


def command_words(parsed: Parsed) -> list[str]:
    """Return the flags that were given, but for those that a plan chooses."""
    chosen = {"deepspeed", "fsdp", "micro_batch_tokens", "gradient_checkpointing", "device"}
    chosen |= vars(parsed.args.plan).keys()
    words: list[str] = []
    for group in vars(parsed.args).values():
        for name, value in vars(group).items():
            is_kind = name == "device" and value in DEVICES
            if name in parsed.given and (name not in chosen or is_kind):
                words += [f"--{name}", *_as_words(value)]
    return words


def _as_words(value: Any) -> list[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, Mapping):
        return [f"{key}={text}" for key, text in value.items()]
    if isinstance(value, float):
        short = f"{value:g}"
        return [short if float(short) == value else repr(value)]
    return [str(part) for part in value] if isinstance(value, tuple) else [str(value)]


def _trace(subject: Subject, job: Job, chosen: Way) -> tuple[float, float]:
    """Return (traced, analytical) bytes of a step as one process of this kind of device makes it."""
    from swiftlet.commands.plan_trace import compare

    way = way_of(job, "none", chosen.budget, chosen.recompute)
    return compare(subject, job.setting, way.largest, chosen.recompute)
