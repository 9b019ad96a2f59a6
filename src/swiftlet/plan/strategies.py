"""Ways to run one job, each with its memory, its verdict and its time; the best one, and what the others lack.

A verdict follows Fujii et al. 2024 (arXiv 2411.06465): 454 runs estimated below 80 % of the device never ran out of
memory. What is slower than another way that fits is dominated: memory that nobody needs is no reason to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from swiftlet.plan import timing
from swiftlet.plan.cards import Card
from swiftlet.plan.memory import GIB, Memory, estimate
from swiftlet.plan.setting import FULL, LEVELS, NONE, PARTIAL, Setting
from swiftlet.plan.sizes import Sizes
from swiftlet.plan.timing import Load

FITS, TIGHT, NO = "fits", "tight", "does not fit"
FITS_BELOW, TIGHT_BELOW = 0.80, 0.95
SLACK_SHARE, LEAST_SLACK, MOST_SLACK = 0.20, 16 * 2**20, 0.7 * GIB  # of the allocator; docs/planning.md
BUSY_TOKENS, BUSY_TOKENS_HOST = 8192, 1024
BUSY_ELEMENTS_HOST, FEWEST_TOKENS = 2**19, 512  # tokens x hidden size, see docs/benchmarks.md
SAME = 1.05  # ways whose times differ by less are equally fast
MOST_DEVICES = 1024
FLAGS = {
    "none": (),
    "zero2": ("--deepspeed", "default-zero2"),
    "zero3": ("--deepspeed", "default-zero3"),
    "zero3-offload": ("--deepspeed", "zero3-offload"),
    "fsdp2": ("--fsdp", "full_shard"),
    "fsdp2-offload": ("--fsdp", "full_shard_offload"),
}
ENGINES = tuple(FLAGS)  # the plainest first


class Fed(NamedTuple):
    """What a micro-batch budget makes of the data.

    Args:
        largest: tokens of the largest micro-batch.
        steps: some steps, each the loads of its micro-batches on the busiest rank.
    """

    largest: int
    steps: Sequence[Sequence[Load]]


@dataclass(frozen=True)
class Job:
    """A run as far as planning knows it.

    Args:
        setting: with the engine, budget and checkpointing that the command line asks for.
        feed: a micro-batch token budget to what the data gives.
        evaluation: loads of one evaluation on one rank, and how many evaluations there are.
        has_partial: the model's modules are known well enough to recompute in part.
        engines: those with which `swift sft` takes the other flags.
    """

    sizes: Sizes
    setting: Setting
    card: Card
    num_steps: int
    feed: Callable[[int], Fed]
    evaluation: tuple[Sequence[Load], int] = ((), 0)
    has_dropout: bool = True
    has_partial: bool = True
    engines: tuple[str, ...] = ENGINES


class Figures(NamedTuple):
    """Bytes on each device: what the allocator hands out, what it takes, and what the device's own tool shows."""

    memory: Memory
    reserved: float
    visible: float
    share: float

    @property
    def verdict(self) -> str:
        """Return whether it fits."""
        return FITS if self.share < FITS_BELOW else TIGHT if self.share < TIGHT_BELOW else NO


class Way(NamedTuple):
    """One way to run a job; `times` and `dominated_by` say how much slower than the best it is, which fits."""

    engine: str
    budget: int
    recompute: str
    largest: int
    figures: Figures
    seconds_a_step: float
    seconds: float
    evaluation_seconds: float
    num_devices: int
    times: float = 1.0
    dominated_by: str = ""

    @property
    def title(self) -> str:
        """Return the engine as people call it."""
        plain = "DDP" if self.num_devices > 1 else "one device"
        return plain if self.engine == "none" else self.engine

    @property
    def name(self) -> str:
        """Return a short name."""
        more = {NONE: "", PARTIAL: " + partial checkpointing", FULL: " + checkpointing"}[self.recompute]
        return f"{self.title}, micro-batches of up to {self.largest} tokens{more}"

    @property
    def flags(self) -> list[str]:
        """Return the flags that ask for it."""
        return [*FLAGS[self.engine], *self.flags_of_any_engine]

    @property
    def flags_of_any_engine(self) -> list[str]:
        """Return those of its flags that are not the engine's."""
        budget = ["--micro_batch_tokens", str(self.budget)] if self.budget else []
        return [*budget, "--gradient_checkpointing", self.recompute]


def figures_of(sizes: Sizes, setting: Setting, card: Card) -> Figures:
    """Return the three figures of one setting on one device."""
    memory = estimate(sizes, setting)
    slack = SLACK_SHARE * (memory.activations + memory.logits + memory.gathered)
    reserved = memory.needed + min(max(slack, LEAST_SLACK), MOST_SLACK)
    visible = reserved + (card.idle_gib + card.context_gib) * GIB
    visible += card.communicator_gib * GIB if setting.world_size > 1 else 0
    return Figures(memory, reserved, visible, visible / (card.memory_gib * GIB))


def levels_for(job: Job, engine: str) -> tuple[str, ...]:
    """Return the levels of recomputing that an engine has for a model; see `no_partial_recomputing` for ZeRO-3."""
    has_partial = job.has_partial and not engine.startswith("zero3")
    return LEVELS if has_partial else (NONE, FULL)


def levels_asked(job: Job, asked: str) -> tuple[str, ...]:
    """Return the levels that a value of --gradient_checkpointing allows, the fastest first."""
    if asked == "AUTO":
        return levels_for(job, job.setting.engine)
    return (asked,)


def way_of(job: Job, engine: str, budget: int, recompute: str) -> Way:
    """Return one way to run a job, with its memory and time."""
    fed = job.feed(budget)
    setting = replace(job.setting, engine=engine, recompute=recompute, tokens=fed.largest, labels=None)
    step = step_seconds(job, setting, fed)
    loads, number = job.evaluation
    each = sum(timing.evaluation(job.sizes, setting, job.card, load) for load in loads)
    evaluations = each * number
    return Way(
        engine,
        budget,
        recompute,
        fed.largest,
        figures_of(job.sizes, setting, job.card),
        step,
        step * job.num_steps + evaluations,
        evaluations,
        setting.world_size,
    )


def step_seconds(job: Job, setting: Setting, fed: Fed) -> float:
    """Return the seconds of a mean optimizer step."""
    times = [
        sum(
            timing.micro_batch(job.sizes, setting, job.card, load, has_dropout=job.has_dropout).total
            for load in loads
        )
        for loads in fed.steps
    ]
    mean = sum(times) / len(times) if times else 0.0
    return mean + timing.update(job.sizes, setting, job.card).total


def different(job: Job, budgets: Iterable[int]) -> list[int]:
    """Return the budgets, the largest first, without those that the data never fills."""
    found: dict[object, int] = {}
    for budget in sorted(budgets):
        fed = job.feed(budget)
        found.setdefault((fed.largest, tuple(len(step) for step in fed.steps)), budget)
    return list(found.values())[::-1]


def ways(job: Job, budgets: Iterable[int]) -> list[Way]:
    """Return all ways, the best first: those that fit by time, then the tight ones, then the others by memory."""
    found = [
        way_of(job, engine, budget, recompute)
        for engine in job.engines
        if engine == "none" or job.setting.world_size > 1 or engine.endswith("offload")
        if not (job.card.is_host and engine.endswith("offload"))  # there is no other memory
        for budget in different(job, budgets)
        for recompute in levels_for(job, engine)
    ]
    rank = {FITS: 0, TIGHT: 1, NO: 2}

    def order(way: Way) -> tuple[float, ...]:
        is_no = way.figures.verdict == NO
        first = way.figures.visible if is_no else way.seconds
        return (rank[way.figures.verdict], first, way.figures.visible)

    found.sort(key=order)
    best = prefer_simple(found)
    return [_marked(way, best) for way in [best, *(way for way in found if way is not best)]]


def prefer_simple(found: Sequence[Way]) -> Way:
    """Return the best way; among equally fast ones the plainest: replicas, no recomputing, less memory."""
    first = found[0]
    if first.figures.verdict == NO:
        return first
    equal = [
        way
        for way in found
        if way.figures.verdict == first.figures.verdict and way.seconds <= SAME * first.seconds
    ]
    return min(
        equal, key=lambda way: (ENGINES.index(way.engine), LEVELS.index(way.recompute), way.figures.visible)
    )


def _marked(way: Way, best: Way) -> Way:
    if way is best or best.figures.verdict == NO or way.figures.verdict == NO:
        return way
    if way.seconds <= SAME * best.seconds:
        return way
    times = way.seconds / best.seconds
    verdict = "fits" if best.figures.verdict == FITS else "is tight"
    return way._replace(times=times, dominated_by=f"{times:.1f} x the time of {best.name}, which {verdict}")


def busy_tokens(*, is_host: bool, hidden: int = 1) -> int:
    """Return the tokens of one forward pass that keep a device busy: more of them cost memory and gain no speed.

    Args:
        hidden: size of the layers, where it is known; a processor is busy with fewer tokens in wide ones.
    """
    if not is_host:
        return BUSY_TOKENS
    return min(BUSY_TOKENS_HOST, max(FEWEST_TOKENS, BUSY_ELEMENTS_HOST // hidden))


def budgets_for(longest: int, busy: int, asked: int | None, *, is_packed: bool) -> list[int]:
    """Return the micro-batch token budgets worth trying, the largest first.

    Args:
        longest: tokens of the longest sample; no budget is below it.
        busy: tokens that keep the device busy.
        asked: what the user insists on.
    """
    if not is_packed:
        return [0]
    if asked is not None:
        return [asked]
    found, budget = [], busy
    while budget > longest:
        found.append(budget)
        budget //= 2
    return [*found, longest]


class Advice(NamedTuple):
    """What `swift sft` does where the user left it to the program; `way` is None where nothing fits."""

    way: Way | None
    nearest: Way


def advise(job: Job, budgets: Sequence[int], levels: Sequence[str]) -> Advice:
    """Return the first of the wanted ways that fits, and the one that comes nearest.

    A smaller budget is tried before recomputing, and recomputing a part before recomputing all. Only the device's whole
    memory is looked at, not what is free now, so that a run that is continued takes the same decisions.
    """
    engine = job.setting.engine
    tried = [way_of(job, engine, budget, level) for level in levels for budget in budgets]
    nearest = min(tried, key=lambda way: way.figures.visible)
    for verdict in (FITS, TIGHT):
        chosen = next((way for way in tried if way.figures.verdict == verdict), None)
        if chosen is not None:
            return Advice(chosen, nearest)
    return Advice(None, nearest)


def devices_needed(job: Job, budgets: Sequence[int]) -> int | None:
    """Return the smallest number of devices (a power of two above the job's) on which a run with FSDP2 fits."""
    number = job.setting.world_size * 2
    while "fsdp2" in job.engines and number <= MOST_DEVICES:
        wider = replace(job, setting=replace(job.setting, world_size=number))
        if way_of(wider, "fsdp2", budgets[-1], FULL).figures.verdict != NO:
            return number
        number *= 2
    return None
