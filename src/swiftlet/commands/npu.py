"""`swift npu`: the devices of this machine, their links, and which process of a run will sit where."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from swiftlet.config.fields import arg
from swiftlet.config.parse import Parsed
from swiftlet.device.affinity import as_text
from swiftlet.device.nvidia_smi import Gpu
from swiftlet.device.overview import Report, look
from swiftlet.device.topology import LINKS, Topology
from swiftlet.errors import SwiftletError

EXAMPLE = "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3 swift npu"
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
        show(report, Console())
    return 0


def show(report: Report, console: Console) -> None:
    """Print the report as tables."""
    if report.chips:
        console.print(status_table(report))
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


def status_table(report: Report) -> Table:
    """Return one line an NPU."""
    version = report.versions.get("driver") or "unknown"
    names = (
        "id",
        "NPU",
        "chip",
        "name",
        "health",
        "power",
        "temp.",
        "AICore",
        "memory [MB]",
        "bus",
        "processes",
    )
    table = Table(*names, title=f"NPUs, driver {version}; id: as in ASCEND_RT_VISIBLE_DEVICES")
    for chip in report.chips:
        card = chip.card
        health = card.health or "-"
        table.add_row(
            str(chip.logical),
            _number(card.npu),
            _number(card.chip),
            card.name or "-",
            f"[{STYLES.get(health, 'red')}]{health}[/]",
            _number(card.power_w, " W"),
            _number(card.temp_c, " °C"),
            _number(card.aicore_pct, " %"),
            _memory(card.used_mb, card.total_mb),
            card.bus_id or "-",
            " ".join(str(process.pid) for process in chip.processes) or "-",
        )
    return table


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
