"""`swift npu`: the devices of this machine, their links, and which process of a run will sit where."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from swiftlet.commands.console import Output
from swiftlet.config.fields import arg
from swiftlet.config.parse import Parsed
from swiftlet.device.affinity import as_text
from swiftlet.device.cards import Chip
from swiftlet.device.nvidia_smi import Gpu
from swiftlet.device.overview import Report, look
from swiftlet.device.topology import LINKS, Topology
from swiftlet.errors import SwiftletError

EXAMPLE = "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3 swift npu"
PIPED_WIDTH = 160  # where no terminal says its own: there nothing needs to be cut
NARROW = 110  # below it the columns that say least are left out
LEAST = ("bus", "power", "temp.")
WHOLE = ("id", "NPU", "chip", "name", "health", "memory [MB]")  # columns that are not cut
LONGEST_PID = 7
STYLES = {"OK": "green", "Warning": "yellow"}


@dataclass(frozen=True)
class ReportArgs:
    """Report"""

    json: bool = arg(False, "Print one JSON object instead of tables")


@dataclass(frozen=True)
class NpuArgs:
    """Show the devices of this machine, their links, and which process of a run will sit where."""

    report: ReportArgs = field(default_factory=ReportArgs)


ARGS = NpuArgs


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    return list(parsed.mistakes)


def run(parsed: Parsed) -> int:
    """Print what is known of the devices; a machine without any is no failure."""
    report = look(os.environ, os.sched_getaffinity(0))
    if parsed.args.report.json:
        print(json.dumps(report.to_json(), ensure_ascii=False, indent=2))
    else:
        console = Output()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Output(width=PIPED_WIDTH)
        show(report, console)
    return 0


def show(report: Report, console: Console) -> None:
    """Print the report as tables."""
    if report.chips:
        console.print(status_table(report, is_narrow=console.width < NARROW))
    if report.gpus:
        console.print(gpu_table(report.gpus))
    if report.topology is not None:
        console.print(matrix_table(report.topology))
        used = {link for row in report.topology.matrix for link in row}
        console.print(
            "; ".join(f"{link}: {text}" for link, text in LINKS.items() if link in used - {"X"}), style="dim"
        )
    if report.seats:
        console.print(seat_table(report))
    for finding in report.findings:
        console.print(
            f"{'error' if finding.is_serious else 'warning'}: {finding}", style="yellow", markup=False
        )
    for note in report.notes:
        console.print(note, markup=False, highlight=False)


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:g}{unit}"


def _memory(used: int | None, total: int | None) -> str:
    return "-" if used is None or total is None else f"{used} / {total}"


def status_table(report: Report, *, is_narrow: bool = False) -> Table:
    """Return one line an NPU."""
    version = report.versions.get("driver") or "unknown"
    table = Table(title=f"NPUs, driver {version}; id: as in ASCEND_RT_VISIBLE_DEVICES")
    rows = [_status(chip) for chip in report.chips]
    for name in rows[0]:
        if not is_narrow or name not in LEAST:
            table.add_column(
                name, no_wrap=name in WHOLE, min_width=LONGEST_PID if name == "processes" else None
            )
    for row in rows:
        table.add_row(*(row[str(column.header)] for column in table.columns))
    return table


def _status(chip: Chip) -> dict[str, str]:
    card = chip.card
    health = card.health or "-"
    return {
        "id": str(chip.logical),
        "NPU": _number(card.npu),
        "chip": _number(card.chip),
        "name": card.name or "-",
        "health": f"[{STYLES.get(health, 'red')}]{health}[/]",
        "power": _number(card.power_w, " W"),
        "temp.": _number(card.temp_c, " °C"),
        "AICore": _number(card.aicore_pct, " %"),
        "memory [MB]": _memory(card.used_mb, card.total_mb),
        "bus": card.bus_id or "-",
        "processes": " ".join(str(process.pid) for process in chip.processes) or "-",
    }


def gpu_table(gpus: Sequence[Gpu]) -> Table:
    """Return one line a GPU."""
    table = Table(
        "id", "name", "busy", "temp.", "memory [MiB]", "bus", title=f"GPUs, driver {gpus[0].driver}"
    )
    for gpu in gpus:
        figures = (
            _number(gpu.busy_pct, " %"),
            _number(gpu.temp_c, " °C"),
            _memory(gpu.used_mb, gpu.total_mb),
        )
        table.add_row(str(gpu.number), gpu.name, *figures, gpu.bus_id)
    return table


def matrix_table(topology: Topology) -> Table:
    """Return the links between devices, and the processors next to each."""
    table = Table("", *topology.ids, "processors", title="links")
    for name, links in zip(topology.ids, topology.matrix, strict=True):
        ranges = topology.cpu_affinity.get(name, [])
        near = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
        table.add_row(name, *(f"[dim]{link}[/]" if link == "X" else link for link in links), near or "-")
    return table


def seat_table(report: Report) -> Table:
    """Return which process of a run would sit where."""
    names = {chip.logical: chip.name for chip in report.chips}
    table = Table("process", "device", "processors", "chosen as", title=report.seats_title)
    for seat in report.seats:
        device = f"{seat.device} ({names[seat.device]})" if seat.device in names else str(seat.device)
        cpus = as_text(seat.binding.cpus) or "all"
        table.add_row(str(seat.local_rank), device, cpus, seat.binding.reason)
    return table
