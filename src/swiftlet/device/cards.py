"""What npu-smi says of this machine's cards: asked once, with the reason where it says nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from swiftlet.device.machine import TIMEOUT_S, ask, find_npu_smi
from swiftlet.device.npu_smi import Card, Info, Process, is_info, parse_info
from swiftlet.device.npu_smi_lists import Row, explain_error, find_error, is_mapping, parse_mapping
from swiftlet.device.topology import (
    Topology,
    TopologyError,
    cpus_beside,
    each_of,
    is_topology,
    parse_topology,
)
from swiftlet.device.visible import ASCEND, CardNumbers


@dataclass
class Cards:
    """The cards of this machine; `failures` says which questions had no answer, and why."""

    info: Info | None = None
    mapping: list[Row] = field(default_factory=list)
    topology: Topology | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def is_partial(self) -> bool:
        """Whether the table was seen to be incomplete."""
        return self.info is not None and self.info.is_partial


class Chip(NamedTuple):
    """One NPU: its number for ASCEND_RT_VISIBLE_DEVICES, its row in the table, and its name in the matrix."""

    logical: int
    card: Card
    name: str
    processes: list[Process]
    cpus: list[int]


def query_mapping(environ: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> list[Row]:
    """Return the NPUs of `npu-smi info -m`, empty when it does not say."""
    program = find_npu_smi(environ)
    if program is None:
        return []
    text = ask(program, "info", "-m", environ=environ, timeout_s=timeout_s).text
    return parse_mapping(text).npus if is_mapping(text) else []


def _failure(question: str, text: str, failure: str) -> str:
    said = find_error(text)
    meaning = explain_error(said)
    answer = f"{question} says: {said}" if said else failure or f"{question} says nothing"
    return f"{answer} ({meaning})" if meaning else answer


def look_at_cards(
    environ: Mapping[str, str], *, with_topology: bool = True, timeout_s: float = TIMEOUT_S
) -> Cards | None:
    """Return what npu-smi says of the cards, None when there is no npu-smi."""
    program = find_npu_smi(environ)
    if program is None:
        return None
    machine = Cards()
    output = ask(program, "info", environ=environ, timeout_s=timeout_s)
    if is_info(output.text):
        machine.info = parse_info(output.text)
    else:
        machine.failures.append(_failure("npu-smi info", output.text, output.failure))
        return machine
    machine.mapping = query_mapping(environ, timeout_s)
    if with_topology:
        output = ask(program, "info", "-t", "topo", environ=environ, timeout_s=timeout_s)
        try:
            machine.topology = parse_topology(output.text) if is_topology(output.text) else None
        except TopologyError as error:
            machine.failures.append(f"npu-smi info -t topo: {error.message}")
        if machine.topology is None and not machine.failures:
            machine.failures.append(_failure("npu-smi info -t topo", output.text, output.failure))
    return machine


def _topology_name(topology: Topology | None, card: Card, logical: int, total: int) -> str:
    """Return the name of a chip in the matrix: by its own numbers, or by its place where the numbers differ."""
    fallback = f"NPU{card.npu if card.npu is not None else logical}" + (
        f" chip {card.chip}" if card.chip else ""
    )
    if topology is None:
        return fallback
    for name in (f"Phy-ID{card.phy_id}", *([f"NPU{card.npu}"] if card.chip in (0, None) else [])):
        if name in topology.ids:
            return name
    return topology.ids[logical] if len(topology.ids) == total else fallback


def _near(topology: Topology | None, name: str, card: Card) -> list[int]:
    """Return the processors next to a chip: of the matrix, else as the kernel knows them by its PCI address."""
    ranges = topology.cpu_affinity.get(name, []) if topology else []
    if not ranges and card.bus_id:
        ranges = cpus_beside(card.bus_id)
    return each_of(ranges)


def chips_of(machine: Cards) -> list[Chip]:
    """Return the NPUs in the order in which programs number them, which in a container is not the cards' own."""
    cards = machine.info.cards if machine.info else []
    processes = machine.info.processes if machine.info else []
    chips = []
    for logical, card in enumerate(_in_logical_order(cards, machine.mapping)):
        own = [one for one in processes if one.npu == card.npu and one.chip in (card.chip, None)]
        name = _topology_name(machine.topology, card, logical, len(cards))
        chips.append(Chip(logical, card, name, own, _near(machine.topology, name, card)))
    return chips


def _in_logical_order(cards: Sequence[Card], mapping: Sequence[Row]) -> list[Card]:
    order = {
        (row.get("NPU ID"), row.get("Chip ID")): int(row["Chip Logic ID"])
        for row in mapping
        if str(row.get("Chip Logic ID", "")).isdigit()
    }
    last = len(cards)
    return sorted(cards, key=lambda card: order.get((card.npu, card.chip or 0), last))


BUSY_SHARE = 0.15  # an idle card has 4 to 9 % in use by its own firmware
FULL_SHARE = 0.9
OWN_DDR_MB = 3072  # of a card without HBM, whose own system lives there too: 2.7 GB on a 310
MOST_LISTED = 8  # processes that npu-smi lists of a chip
MOST_NAMED = 4
INCOMPLETE = "the table of npu-smi is incomplete: there may be more cards, or more processes on them"


class Finding(NamedTuple):
    """Something about a card that a run should know; a serious one makes the run pointless."""

    is_serious: bool
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


HEALTH_HINTS = {
    "Warning": "type {command} for the code; many warnings do no harm",
    "Alarm": "type {command} for the code, and choose another card meanwhile",
    "Critical": "choose another card, and give the code of {command} to the administrator",
    "UNKNOWN": "the card has not started or has gone: type dmesg | grep -i devdrv, or restart the machine",
}


def health_command(chip: Chip) -> str:
    """Return what to type to see what is wrong with this chip."""
    number = f" -c {chip.card.chip}" if chip.card.chip else ""
    return f"npu-smi info -t health -i {chip.card.npu}{number}"


def is_gone(chip: Chip) -> bool:
    """Return whether the driver still lists a chip that has no memory: it fell off the bus, or did not start."""
    return chip.card.total_mb == 0


def _health_finding(chip: Chip) -> Finding | None:
    health = chip.card.health
    if is_gone(chip):
        health = health or "not shown"
        message = f"NPU {chip.logical} ({chip.name}) has no memory (0 / 0 MB), health {health}: it has gone"
        return Finding(True, message, f"choose another card; {HEALTH_HINTS['UNKNOWN']}")
    if health in ("OK", None):
        return None
    hint = HEALTH_HINTS.get(health, HEALTH_HINTS["Alarm"]).format(command=health_command(chip))
    return Finding(False, f"NPU {chip.logical} ({chip.name}) has health {health}", hint)


def is_busy(chip: Chip) -> bool:
    """Return whether others hold memory of this chip, even with no work running on it."""
    used, total = chip.card.used_mb, chip.card.total_mb
    own = 0 if chip.card.hbm_mb else OWN_DDR_MB
    return bool(used and total and used > max(BUSY_SHARE * total, own))


def free_ids(chips: Sequence[Chip]) -> list[int]:
    """Return the logical numbers of the cards that a run could take."""
    usable = (chip for chip in chips if not is_busy(chip) and not is_gone(chip))
    return [chip.logical for chip in usable if chip.card.health in ("OK", None)]


def numbers_of(chips: Sequence[Chip]) -> CardNumbers:
    """Return the numbers of the cards here by their own, which another one of them may have here."""
    here: dict[int, list[int]] = {}
    for chip in chips:
        if chip.card.npu is not None:
            here.setdefault(chip.card.npu, []).append(chip.logical)
    return CardNumbers(here, free_ids(chips))


def _choose(free: Sequence[int]) -> str:
    return f"{ASCEND}={','.join(map(str, free))}"


def _is_elsewhere(chip: Chip) -> bool:
    """Return whether a process of another container holds it, which has no name here and whose number is not ours."""
    return any(not one.name for one in chip.processes)


def _list_holders(chip: Chip) -> str:
    return f"ps -fp {','.join(str(one.pid) for one in chip.processes)}"


def busy_command(chip: Chip, free: Sequence[int]) -> str:
    """Return what to type where this card is busy: other cards, else who holds it."""
    if free:
        return _choose(free)
    return _list_holders(chip) if chip.processes and not _is_elsewhere(chip) else "npu-smi info"


def _holders(chip: Chip) -> str:
    """Return who holds a card, in words; npu-smi does not list all of many."""
    names = [f"process {one.pid} {one.name}".strip() for one in chip.processes[:MOST_NAMED]]
    others = len(chip.processes) - MOST_NAMED
    if others <= 0:
        return ", ".join(names)
    least = "at least " if len(chip.processes) >= MOST_LISTED else ""
    return f"{', '.join(names)} and {least}{others} other{'s' * (others > 1)}"


def _busy_finding(chip: Chip, free: Sequence[int]) -> Finding | None:
    if not is_busy(chip):
        return None
    used, total = chip.card.used_mb or 0, chip.card.total_mb or 1
    work = "" if chip.card.aicore_pct else ", with no work running on it"
    by = f" by {_holders(chip)}" if chip.processes else ""
    message = f"NPU {chip.logical} ({chip.name}) is busy: {used} of {total} MB are in use{by}{work}"
    other = f"choose free ones: {_choose(free)}" if free else ""
    where = (
        "end what holds it outside of this container, on the host"
        if _is_elsewhere(chip)
        else "end what holds it"
    )
    stop = f"{where}: {_list_holders(chip)}" if chip.processes else ""
    hint = ", or ".join(part for part in (other, stop) if part)
    return Finding(used > FULL_SHARE * total, message, hint or "type npu-smi info to see who uses the cards")


def findings(chips: Sequence[Chip], visible: Collection[int] | None = None) -> list[Finding]:
    """Return what is wrong with the cards that a run will use; all cards when `visible` is None."""
    chosen = [chip for chip in chips if visible is None or chip.logical in visible]
    free = free_ids(chips)
    found = [_health_finding(chip) for chip in chosen]
    found += [_busy_finding(chip, free[: len(chosen)]) for chip in chosen]
    return [one for one in found if one is not None]


def check_cards(visible: Collection[int] | None, environ: Mapping[str, str]) -> list[Finding]:
    """Return the busy and unhealthy cards among those of a run; call it before a model is loaded.

    Args:
        visible: logical ids, as in ASCEND_RT_VISIBLE_DEVICES; None for all.
    """
    machine = look_at_cards(environ, with_topology=False)
    if machine is None:
        return []
    if machine.info is None:
        return [Finding(False, message, "type swift doctor") for message in machine.failures]
    partial = [Finding(False, INCOMPLETE, "type npu-smi info")] if machine.is_partial else []
    return findings(chips_of(machine), visible) + partial
