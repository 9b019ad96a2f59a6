"""How a plan is shown: on the terminal, and as JSON."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from swiftlet.commands.plan_parts import reserved_source, sources_of, visible_source
from swiftlet.commands.planning import Subject
from swiftlet.plan.memory import GIB, host_bytes
from swiftlet.plan.setting import FULL, NONE, PARTIAL
from swiftlet.plan.strategies import FITS, NO, TIGHT, Job, Way
from swiftlet.plan.timing import BAND_GUESSED, BAND_MEASURED
from swiftlet.train.progress import short_time

STYLES = {FITS: "green", TIGHT: "yellow", NO: "red"}
SHOWN_LEVELS = {NONE: "no", PARTIAL: "partial", FULL: "yes"}


class Answer(NamedTuple):
    """A plan: what it is about, what `swift sft` would do, and all ways to run it, the best first.

    Args:
        is_possible: the command line as given fits; else `chosen` is what comes nearest.
        start: the variables before a command.
        words: the flags as given, without those that a plan chooses.
        traced: (traced, analytical) bytes of the step, where the trace was asked for.
        devices_needed: where nothing fits without the host's memory: how many devices a sharded run needs.
    """

    subject: Subject
    job: Job
    note: str
    chosen: Way
    is_possible: bool
    table: list[Way]
    start: list[str]
    words: list[str]
    traced: tuple[float, float] | None
    devices_needed: int | None

    @property
    def best(self) -> Way:
        """Return the best way of all."""
        return self.table[0]

    @property
    def band(self) -> float:
        """Return how far the times may be off, as a share."""
        return BAND_MEASURED if self.subject.card.is_measured else BAND_GUESSED

    def command(self, way: Way) -> str:
        """Return the full command of a way, to paste; with the settings of DeepSpeed that were given where it can."""
        own = self.subject.args.parallel.deepspeed
        is_own = own is not None and way.engine == self.job.setting.engine
        flags = ["--deepspeed", own, *way.flags_of_any_engine] if is_own else way.flags
        return " ".join([*self.start, shlex.join(["swift", "sft", *self.words, *flags])])


def gib(size: float) -> str:
    """Return bytes as GiB."""
    digits = 4 if size < 0.1 * GIB else 2 if size < 10 * GIB else 1
    return f"{size / GIB:.{digits}f}"


def show(answer: Answer, console: Console) -> None:
    """Print the plan."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for line in head_lines(answer):
        say(line)
    console.print(_memory_table(answer))
    figures, card = answer.chosen.figures, answer.subject.card
    text = f"{figures.verdict}: {figures.share:.0%} of {card.memory_gib:.4g} GiB"
    console.print(f"[{STYLES[figures.verdict]}]{text}[/] (below 80 % fits, below 95 % is tight)")
    say(time_line(answer))
    if answer.traced is not None:
        traced, analytical = answer.traced
        console.print(
            f"trace of the step on fake tensors: {gib(traced)} GiB; by formula {gib(analytical)} GiB "
            f"({analytical / traced - 1:+.1%})"
        )
    console.print(_ways_table(answer))
    for line in advice_lines(answer):
        say(line)


def head_lines(answer: Answer) -> list[str]:
    """Return what the plan is about, each figure with its source."""
    subject, schedule, card = answer.subject, answer.subject.schedule, answer.subject.card
    rows = len(subject.rows.train)
    return [
        f"model: {subject.sized.name}, {subject.sized.geometry.num_parameters:,} parameters "
        f"({subject.sized.source}), {subject.dtype}",
        f"data: {rows:,} rows to train on, {len(subject.rows.val):,} held out, longest {subject.longest} tokens "
        f"({subject.rows.source})",
        f"device: {subject.world_size} x {card.name}, {card.memory_gib:.4g} GiB ({answer.note})",
        f"rates of the device: {card.sources}",
        f"steps: {schedule.num_steps} of {schedule.step_size} samples, {schedule.steps_per_epoch} an epoch "
        f"(exact: {rows:,} rows / {schedule.step_size})",
    ]


def time_line(answer: Answer) -> str:
    """Return the time of the chosen way, of what it is made, and how sure it is."""
    chosen, number = answer.chosen, answer.job.evaluation[1]
    parts = f"{answer.job.num_steps} steps of {chosen.seconds_a_step:.3g} s"
    parts += f", evaluations ({number}) in {short_time(chosen.evaluation_seconds)}" if number else ""
    how = "calibrated" if answer.subject.card.is_measured else "swift plan --calibrate halves the band"
    return f"time: {_time(chosen.seconds, answer.band)}: {parts}; an estimate, +-{answer.band:.0%} ({how})"


def _time(seconds: float, band: float) -> str:
    low, high = short_time(seconds * (1 - band)), short_time(seconds * (1 + band))
    return f"{short_time(seconds)} ({low} to {high})"


def advice_lines(answer: Answer) -> list[str]:
    """Return what to do: the command of the best way, or what is missing."""
    best, number = answer.best, answer.devices_needed
    if best.figures.verdict == NO:
        lines = [
            f"nothing fits: the smallest way needs {gib(best.figures.visible)} GiB a device ({best.name})"
        ]
        if number:
            lines.append(f"it fits on {number} devices with --fsdp full_shard")
        return lines
    lines = []
    if not answer.is_possible:
        lines.append(
            f"the command as given does not fit: it needs {gib(answer.chosen.figures.visible)} GiB a device; "
            f"the cheapest change that fits is: {best.name}"
        )
    kept = host_bytes(answer.subject.sized.geometry, replace(answer.job.setting, engine=best.engine))
    if kept:
        without = f"; without it {number} devices with --fsdp full_shard are enough" if number else ""
        lines.append(
            f"{best.engine} keeps {gib(kept)} GiB in the memory of the host, which is not checked here{without}"
        )
    return [*lines, f"best: {best.name}", answer.command(best)]


def _memory_table(answer: Answer) -> Table:
    chosen, card = answer.chosen, answer.subject.card
    table = Table(
        title=f"memory of a device for the command as given [GiB]: {chosen.name}", title_justify="left"
    )
    table.add_column("part")
    table.add_column("GiB", justify="right")
    table.add_column("from")
    sources = sources_of(answer.job, chosen)
    for name, size in chosen.figures.memory._asdict().items():
        if size:
            table.add_row(name, gib(size), sources[name])
    figures = chosen.figures
    table.add_section()
    table.add_row("needed", gib(figures.memory.needed), "the sum: tensors at the peak of a step")
    table.add_row("expected reserved", gib(figures.reserved), reserved_source())
    table.add_row("device-visible", gib(figures.visible), visible_source(card, answer.subject.world_size))
    return table


def shown(answer: Answer) -> list[Way]:
    """Return the ways of the best engine, and of each other engine the best of each level of checkpointing."""
    seen: set[tuple[str, str]] = set()
    found = []
    for way in answer.table:
        key = (way.engine, way.recompute)
        if way.engine == answer.best.engine or key not in seen:
            found.append(way)
        seen.add(key)
    return found


def _ways_table(answer: Answer) -> Table:
    rows = shown(answer)
    more = len(answer.table) - len(rows)
    rest = f"; {more} other budgets: --json" if more else ""
    table = Table(
        title=f"ways to run it, the best first; crossed out: slower than the best, which fits{rest}",
        title_justify="left",
    )
    for name in ("engine", "micro-batch", "checkpointing"):
        table.add_column(name)
    for name in ("needed", "reserved", "visible", "share", "time"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for way in rows:
        figures = way.figures
        cells = [
            way.title,
            f"{way.largest} tokens",
            SHOWN_LEVELS[way.recompute],
            *(gib(size) for size in (figures.memory.needed, figures.reserved, figures.visible)),
            f"{figures.share:.0%}",
            short_time(way.seconds),
        ]
        style = "strike dim" if way.dominated_by else STYLES[figures.verdict]
        verdict = f"{way.times:.1f}x as long" if way.dominated_by else figures.verdict
        table.add_row(
            *(Text(cell, style=style) for cell in cells), Text(verdict, style.removeprefix("strike "))
        )
    return table


def to_json(answer: Answer) -> dict[str, Any]:
    """Return the plan as plain data; sizes in bytes, times in seconds."""
    subject = answer.subject
    return {
        "model": subject.sized.name,
        "num_parameters": subject.sized.geometry.num_parameters,
        "geometry_source": subject.sized.source,
        "dtype": subject.dtype,
        "data_source": subject.rows.source,
        "num_train_rows": len(subject.rows.train),
        "num_val_rows": len(subject.rows.val),
        "longest_row_tokens": subject.longest,
        "device": subject.card.name,
        "device_memory_bytes": subject.card.memory_gib * GIB,
        "device_sources": subject.card.sources,
        "device_found": answer.note,
        "world_size": subject.world_size,
        "num_steps": subject.schedule.num_steps,
        "num_evaluations": answer.job.evaluation[1],
        "is_possible": answer.is_possible,
        "time_band": answer.band,
        "traced_bytes": answer.traced[0] if answer.traced else None,
        "devices_needed": answer.devices_needed,
        "chosen": way_to_json(answer, answer.chosen),
        "best": way_to_json(answer, answer.best),
        "ways": [way_to_json(answer, way) for way in answer.table],
    }


def way_to_json(answer: Answer, way: Way) -> dict[str, Any]:
    """Return one way as plain data."""
    figures = way.figures
    return {
        "engine": way.engine,
        "micro_batch_tokens": way.budget,
        "gradient_checkpointing": {NONE: False, FULL: True}.get(way.recompute, way.recompute),
        "largest_micro_batch_tokens": way.largest,
        "sources": sources_of(answer.job, way),
        "components": {name: round(size) for name, size in figures.memory._asdict().items()},
        "needed": round(figures.memory.needed),
        "reserved": round(figures.reserved),
        "visible": round(figures.visible),
        "share": round(figures.share, 4),
        "verdict": figures.verdict,
        "seconds_a_step": way.seconds_a_step,
        "seconds": way.seconds,
        "dominated_by": way.dominated_by,
        "command": answer.command(way),
    }
