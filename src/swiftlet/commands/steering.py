"""What planning decides for `swift sft` before a byte of weights is read: checkpointing, the micro-batch, or to refuse.

Decisions follow from the device's whole memory and the lengths alone, so a run that is continued takes the same ones.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.commands.calibration import measured_here
from swiftlet.commands.planning import Sized, Subject, geometry_in, job_of, schedule_of, tokenised_rows
from swiftlet.commands.sft import Setup
from swiftlet.config.fields import with_values
from swiftlet.data.batching import collate
from swiftlet.data.survey import largest_micro_batch
from swiftlet.device.spec import Device
from swiftlet.errors import OutOfMemoryError
from swiftlet.models.safety import CONFIG
from swiftlet.parallel.world import World
from swiftlet.plan.cards import Card, find_card, host_card, like_card, with_measured
from swiftlet.plan.chosen import pays_to_share
from swiftlet.plan.memory import CUT, GIB, host_bytes
from swiftlet.plan.setting import FULL, NONE, PARTIAL
from swiftlet.plan.strategies import (
    FITS,
    FLAGS,
    NO,
    Advice,
    Job,
    Way,
    advise,
    budgets_for,
    busy_tokens,
    levels_asked,
    way_of,
    ways,
)
from swiftlet.train.memory_trial import HINT, MemoryPlan
from swiftlet.train.progress import short_time
from swiftlet.train.report import Forecast

ROOMY = 0.5  # of the free memory; plans of runs here were 8 % off at most (docs/planning.md)
FORCE = "--force true starts it anyway"
CHOSEN = {
    NONE: "off: not needed",
    PARTIAL: "partial: memory asks for it",
    FULL: "on: memory asks for it",
}


class Steered(NamedTuple):
    """The arguments with checkpointing decided, the micro-batch token budget, and what is expected of the run."""

    args: Any
    token_budget: int
    memory: MemoryPlan
    forecast: Forecast | None


def steer(setup: Setup) -> Steered:
    """Decide what the user left to the program; every rank comes to the same decisions.

    Raises:
        OutOfMemoryError: the run cannot fit on this device, and --force was not given.
    """
    args, ready, device, world = setup
    asked = args.train.gradient_checkpointing
    sizes = geometry_in(ready.source.folder)
    if sizes is None:
        log.info(f"{ready.source.name} is of a build whose memory is not known here: nothing is planned")
        args = with_values(args, gradient_checkpointing=NONE if asked == "AUTO" else asked)
        longest, busy = int(ready.data.train.lengths.max()), busy_tokens(is_host=device.kind == "cpu")
        budget = budgets_for(longest, busy, args.train.micro_batch_tokens, is_packed=args.data.packing)[0]
        return Steered(args, budget, _memory(setup, budget, "", HINT), None)
    card = card_of(device, world.local_world_size)
    subject = _subject(setup, Sized(ready.source.name, sizes, CONFIG, ready.source.folder), card)
    job, budgets = job_of(subject), subject.budgets
    advice = advise(job, budgets, levels_asked(job, asked))
    way = advice.way or advice.nearest
    hint = propose(job, advice, subject.budgets_to_propose)
    check_fits(args, advice, device, world, hint)
    if world.is_main:
        _tell(job, way, asked)
    args = with_values(
        args, gradient_checkpointing=way.recompute, share_prefixes=_sharing(args, job, way, world)
    )
    figures = way.figures
    held = held_by_graphs(way) if args.model.graph_capture else 0
    forecast = Forecast(
        figures.memory.needed / GIB,
        (figures.reserved + held) / GIB,
        (figures.visible + held) / GIB,
        way.seconds_a_step,
        way.evaluation_seconds / max(1, job.evaluation[1]),
    )
    if has_room(way, device, world):
        log.info("less than half of the free memory is needed: the largest micro-batch is not tried first")
        memory = MemoryPlan(None, breakdown(way), hint)
    else:
        memory = _memory(setup, way.budget, breakdown(way), hint)
    return Steered(args, way.budget, memory, forecast)


def _sharing(args: Any, job: Job, way: Way, world: World) -> str:
    """Return whether equal beginnings are computed once; where the user left it open, by the plan."""
    asked: str = args.data.share_prefixes
    if asked == "AUTO" and args.model.graph_capture:
        return "false"
    if asked != "AUTO" or pays_to_share(job, way):
        return asked
    if world.is_main:
        log.info(
            "what samples begin with alike is computed for each: a step waits for its launches, not for its tokens "
            "(--share_prefixes true computes it once)"
        )
    return "false"


def held_by_graphs(way: Way) -> float:
    """Return the bytes that recorded passes hold beside those that run as they come: once what a pass works with."""
    return way.figures.memory.activations + way.figures.memory.logits


def has_room(way: Way, device: Device, world: World) -> bool:
    """Return whether a processor's memory is so large that a trial would only cost time, by the plan on every rank."""
    if device.kind != "cpu":
        return False  # a trial also takes the memory at once that is needed later
    free, _ = device.memory()
    return not world.agree(way.figures.visible * world.local_world_size > ROOMY * free)


def card_of(device: Device, local_world_size: int) -> Card:
    """Return what is known of an open device, its memory as torch sees it."""
    total = device.memory()[1] / GIB
    if device.kind == "cpu":
        return host_card(total / local_world_size, measured_here(device.kind, os.environ))
    known = find_card(device.name)
    like = like_card(device.name)
    card = known or replace(like, name=device.name, sources=f"not in the table: rates of {like.name}")
    return replace(with_measured(card, measured_here(card.name, os.environ)), memory_gib=total)


def _subject(setup: Setup, sized: Sized, card: Card) -> Subject:
    args, data, world = setup.args, setup.ready.data, setup.world
    schedule = schedule_of(args, len(data.train), world.world_size)
    return Subject(args, sized, tokenised_rows(data), card, world.world_size, schedule, args.model.dtype)


def breakdown(way: Way) -> str:
    """Return one line of what the memory is for, the largest part first."""
    parts = sorted(way.figures.memory._asdict().items(), key=lambda part: -part[1])
    shown = ", ".join(
        f"{name} {size / GIB:.2f}" for name, size in parts if size > 0.005 * way.figures.memory.needed
    )
    return f"{way.figures.memory.needed / GIB:.2f} GiB needed ({shown})"


def propose(job: Job, advice: Advice, budgets: list[int]) -> str:
    """Return what to type when memory is too small: the cheapest change that needs less than the chosen way."""
    now = (advice.way or advice.nearest).figures.visible
    less = next(
        (way for way in ways(job, budgets) if way.figures.visible < now and way.figures.verdict != NO), None
    )
    if less is None:
        fewer = "--sft_type lora" if job.setting.is_full else "fewer adapters"
        return f"use more or larger devices, a lower --max_length, or {fewer}; {FORCE}"
    given, wanted = FLAGS[job.setting.engine], less.flags
    is_same = less.engine == job.setting.engine
    instead = f"leave out {given[0]} and " if given and given[0] not in wanted else ""
    words = " ".join(less.flags_of_any_engine if is_same else wanted)
    kept = host_bytes(job.sizes, replace(job.setting, engine=less.engine))
    on_host = f" and {kept / GIB:.0f} of the host's memory" if kept else ""
    return f"{instead}type {words} ({less.figures.visible / GIB:.1f} GiB a device{on_host} by the plan)"


def check_fits(args: Any, advice: Advice, device: Device, world: World, hint: str) -> None:
    """Refuse a run whose memory is larger than the device, or than what others have left of it.

    Raises:
        OutOfMemoryError: on every rank, where any rank has too little.
    """
    way = advice.way or advice.nearest
    free, total = device.memory()
    is_host = device.kind == "cpu"
    is_short = not is_host and way.figures.reserved > free
    problems = []
    if advice.way is None:
        problems.append(
            f"this run needs {way.figures.visible / GIB:.1f} GiB a device, which has {total / GIB:.1f}"
        )
    if world.agree(is_short):
        problems.append(
            f"this run needs {way.figures.reserved / GIB:.1f} GiB, and {free / GIB:.1f} of {total / GIB:.1f} GiB are "
            "free on this device: others hold the rest"
        )
    if not problems:
        return
    text = f"{'; '.join(problems)}: {breakdown(way)}"
    if not args.parallel.force:
        raise OutOfMemoryError(text, hint if FORCE in hint else f"{hint}; {FORCE}")
    log.warning(f"{text}; it starts because of --force")


def _tell(job: Job, way: Way, asked: str) -> None:
    figures = way.figures
    log.info(
        f"plan: {breakdown(way)}, {figures.reserved / GIB:.2f} reserved, {figures.visible / GIB:.2f} of "
        f"{job.card.memory_gib:.1f} GiB visible; micro-batches of up to {way.largest} tokens; about "
        f"{short_time(way.seconds)} ({'calibrated' if job.card.is_measured else 'a guess: swift plan --calibrate'})"
    )
    if asked == "AUTO":
        log.info(f"gradient_checkpointing is {CHOSEN[way.recompute]}")
    if figures.verdict != FITS:
        log.warning(f"memory is tight: {figures.share:.0%} of the device by the plan")
    if way.engine in CUT and job.setting.world_size > 1:
        plain = way_of(job, "none", way.budget, way.recompute)
        if plain.figures.verdict == FITS and plain.seconds < way.seconds:
            log.warning(
                f"{way.engine} is not needed: replicas fit ({plain.figures.share:.0%} of the device) and take about "
                f"{plain.seconds / way.seconds:.0%} of the time; leave out --deepspeed and --fsdp"
            )


def _memory(setup: Setup, budget: int, text: str, hint: str) -> MemoryPlan:
    train = setup.ready.data.train
    schedule = schedule_of(setup.args, len(train), setup.world.world_size, budget)
    largest = largest_micro_batch(train.lengths, schedule)
    return MemoryPlan(collate(train, largest.samples), text, hint)
