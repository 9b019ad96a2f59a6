"""What there is to say of a machine's devices: cards, links, seats of processes, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swiftlet.device.affinity import as_text
from swiftlet.device.cards import (
    INCOMPLETE,
    Cards,
    Chip,
    Finding,
    chips_of,
    findings,
    look_at_cards,
    numbers_of,
)
from swiftlet.device.machine import NPU_SMI_PLACES, Machine, find_npu_smi, look_at_machine
from swiftlet.device.nvidia_smi import Gpu, look_at_gpus
from swiftlet.device.placement import Seat, chosen, near_gpus, near_of, seats
from swiftlet.device.topology import Topology
from swiftlet.device.visible import ASCEND, CUDA, PROCESSES, UNKNOWN, CardNumbers, check_visible, hiding


@dataclass
class Report:
    """Everything that the command shows."""

    chips: list[Chip] = field(default_factory=list)
    topology: Topology | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    gpus: list[Gpu] = field(default_factory=list)
    seats: list[Seat] = field(default_factory=list)
    seats_title: str = ""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report for a program."""
        return {
            "versions": self.versions,
            "npus": [_chip_facts(chip) for chip in self.chips],
            "topology": self.topology._asdict() if self.topology else None,
            "gpus": [gpu._asdict() for gpu in self.gpus],
            "processes": [
                {
                    "local_rank": seat.local_rank,
                    "device": seat.device,
                    "cpus": as_text(seat.binding.cpus),
                    "reason": seat.binding.reason,
                }
                for seat in self.seats
            ],
            "findings": [finding._asdict() for finding in self.findings],
            "notes": self.notes,
        }


def _chip_facts(chip: Chip) -> dict[str, Any]:
    return {
        "id": chip.logical,
        **chip.card._asdict(),
        "topology_name": chip.name,
        "cpus": as_text(chip.cpus),
        "processes": [process._asdict() for process in chip.processes],
    }


def look(environ: Mapping[str, str], allowed: set[int]) -> Report:
    """Ask npu-smi, and nvidia-smi where there is none."""
    found = look_at_cards(environ)
    if found is not None:
        return _npu_report(found, environ, allowed)
    gpus, failure = look_at_gpus(environ)
    if gpus:
        near = near_gpus(gpus)
        devices, title = _run_here(CUDA, environ, len(gpus))
        wrong = _mistakes(environ, look_at_machine(environ)._replace(gpus=len(gpus)))
        sitting = [] if wrong else seats(devices, near, allowed)
        return Report(gpus=gpus, seats=sitting, seats_title=title, findings=wrong)
    places = ", ".join(("the search path", *NPU_SMI_PLACES))
    notes = [f"no npu-smi was found (looked in {places}): no Ascend driver, or a container without it"]
    notes.append(f"nvidia-smi says: {failure}" if failure else "no nvidia-smi was found on the search path")
    notes.append(f"a run takes the CPU here: {len(allowed)} processors ({as_text(allowed)})")
    return Report(notes=notes)


def _run_here(variable: str, environ: Mapping[str, str], total: int) -> tuple[list[int], str]:
    """Return the devices of a run that is started with this environment, or of one on all of them."""
    devices = chosen(variable, environ, total)
    processes = environ.get(PROCESSES, "").strip()
    if processes.isdecimal() and int(processes):
        devices = devices[: int(processes)]
    elif variable not in environ:
        return devices, f"a run on all devices: {PROCESSES}={total}"
    return devices, f"a run started here: {len(devices)} process{'es' * (len(devices) != 1)}"


def _mistakes(environ: Mapping[str, str], machine: Machine, cards: CardNumbers = UNKNOWN) -> list[Finding]:
    """Return why no run starts with this environment: the variables that choose devices are wrong."""
    found = [Finding(True, one.message, one.hint or "") for one in check_visible(environ, machine, cards)]
    return found + [
        Finding(True, f"{name} is set but empty, which hides every device", f"type unset {name}")
        for name in hiding(environ, machine)
    ]


def _npu_report(found: Cards, environ: Mapping[str, str], allowed: set[int]) -> Report:
    chips = chips_of(found)
    devices, title = _run_here(ASCEND, environ, len(chips))
    info = found.info
    report = Report(chips, found.topology, notes=list(found.failures))
    if info is not None:
        report.versions = {"npu_smi": info.npu_smi_version, "driver": info.driver_version}
    if found.is_partial:
        report.notes.append(INCOMPLETE)
    machine = look_at_machine(environ)
    if machine.npus is None and not found.is_partial:
        machine = machine._replace(npus=len(chips) or None)
    wrong = _mistakes(environ, machine, numbers_of(chips))
    report.findings = wrong + findings(chips, devices)
    report.seats, report.seats_title = [] if wrong else seats(devices, near_of(chips), allowed), title
    report.notes += [f"asked {find_npu_smi(environ)}"]
    return report
