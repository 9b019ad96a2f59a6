"""What `npu-smi info` prints, of every layout since the 310: cells are split at the bars, never cut by offset.

A card has two lines in the table: the first with its name and health, the second with its chip, bus and memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

HEALTH = frozenset({"ok", "warning", "alarm", "critical", "unknown", "offline"})
UNSAID = ("NA", "-")
VERSION = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)", re.IGNORECASE)
BUS = re.compile(r"[0-9A-Fa-f]{4,}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
PAIR = re.compile(r"(\d+|NA|-)\s*/\s*(\d+|NA|-)")
IDLE = re.compile(r"No running processes found in NPU\s*(\d+)", re.IGNORECASE)
LEAST_CELLS = 3  # of a row of cards
# What a terminal, a web page or a mail adds to a line.
COLOUR, QUOTED = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), re.compile(r"^(?:\s*>)+", re.MULTILINE)
UNIT = re.compile(r"Process memory\s*\((\w+)\)", re.IGNORECASE)


class Card(NamedTuple):
    """One chip of a card, with sizes in MB; None where the table does not say."""

    npu: int | None = None
    chip: int | None = None
    name: str | None = None
    health: str | None = None
    power_w: float | None = None
    temp_c: float | None = None
    bus_id: str | None = None
    aicore_pct: float | None = None
    mem_mb: tuple[int, int] | None = None
    hbm_mb: tuple[int, int] | None = None
    phy_id: int | None = None
    device: int | None = None

    @property
    def used_mb(self) -> int | None:
        """Memory in use: HBM where the card has it, else DDR."""
        pair = self.hbm_mb or self.mem_mb
        return pair[0] if pair else None

    @property
    def total_mb(self) -> int | None:
        """Memory of the card: HBM where it has it, else DDR."""
        pair = self.hbm_mb or self.mem_mb
        return pair[1] if pair else None


class Process(NamedTuple):
    """A process that holds memory of a chip; the name is cut at 15 characters and blank from other containers."""

    npu: int
    chip: int | None
    pid: int
    name: str
    mem: int


@dataclass
class Info:
    """The table of `npu-smi info`; `is_partial` when lines, or ends of lines, were seen to be missing."""

    npu_smi_version: str | None = None
    driver_version: str | None = None
    cards: list[Card] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    idle_npus: list[int] = field(default_factory=list)
    process_table: bool = False
    process_memory_unit: str | None = None
    is_partial: bool = False


class _Columns(NamedTuple):
    """What the header says of the second line of a card."""

    extra: str | None = None  # phy_id or device, beside the chip's number
    has_hbm: bool | None = None  # None: no header was seen


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d+", text) else None


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(?:\.\d+)?", text) else None


def _pair(used: str, total: str) -> tuple[int, int] | None:
    return (int(used), int(total)) if used.isdigit() and total.isdigit() else None


def _is_first_line(cells: list[str], first: Card | None) -> bool:
    """Return whether a row is the first of a card's two: by its health, else by the name that it begins with."""
    if len(cells) < LEAST_CELLS or not cells[0][:1].isdigit():
        return False
    health = cells[-2]
    if health.lower() in HEALTH:
        return True
    is_named = any(letter.isalpha() for letter in " ".join(cells[:-2]))
    return first is None and is_named and (health.isalpha() or health in UNSAID)


def _first_line(cells: list[str]) -> Card:
    """Return what the first line of a card says: `| 0     910B3 | OK | 90.1  40  0 / 0 |`."""
    number, _, name = cells[0].partition(" ") if len(cells) == 3 else (cells[0], "", cells[1])
    figures = cells[-1].split()
    power = _decimal(figures[0]) if figures else None
    temperature = _decimal(figures[1]) if len(figures) > 1 else None
    health = None if cells[-2] in UNSAID else cells[-2]
    return Card(_whole(number), None, name.strip() or None, health, power, temperature)


def _second_line(cells: list[str], first: Card, columns: _Columns) -> Card:
    """Return the whole card: `| 0 | 0000:C1:00.0 | 0   0 / 0   3318 / 65536 |` completes its first line."""
    numbers = cells[0].split()
    figures = cells[-1]
    pairs = [_pair(*found) for found in PAIR.findall(figures)]
    has_hbm = len(pairs) > 1 if columns.has_hbm is None else columns.has_hbm
    words = figures.split()
    number = _whole(numbers[1]) if len(numbers) > 1 else None
    return first._replace(
        chip=_whole(numbers[0]) if numbers else None,
        bus_id=cells[-2] if BUS.fullmatch(cells[-2]) else None,
        aicore_pct=_decimal(words[0]) if words else None,
        mem_mb=pairs[0] if pairs else None,
        hbm_mb=pairs[1] if has_hbm and len(pairs) > 1 else None,
        phy_id=number if columns.extra == "phy_id" else None,
        device=number if columns.extra == "device" else None,
    )


def _read_header(cells: list[str]) -> _Columns:
    text = " ".join(cells)
    extra = "phy_id" if "Phy-ID" in cells[0] else "device" if "Device" in cells[0] else None
    return _Columns(extra, "HBM-Usage" in text)


def _read_process(cells: list[str]) -> Process | None:
    if len(cells) < 4:
        return None
    numbers, pid, memory = cells[0].split(), _whole(cells[1]), _whole(cells[3].split(" ")[0])
    npu = _whole(numbers[0]) if numbers else None
    if npu is None or pid is None or memory is None:
        return None
    return Process(npu, _whole(numbers[1]) if len(numbers) > 1 else None, pid, cells[2], memory)


def _lines(text: str) -> list[str]:
    """Return the lines as npu-smi printed them."""
    text = QUOTED.sub("", COLOUR.sub("", text).replace("\u00a0", " "))
    return [line.strip() for line in text.splitlines()]


def is_info(text: str) -> bool:
    """Return whether the text holds a table of `npu-smi info`, or a part of one."""
    return any(len(_cells(line)) >= LEAST_CELLS for line in _lines(text) if line.startswith("|"))


def parse_info(text: str) -> Info:
    """Return the cards and processes of `npu-smi info`, of several outputs (watch) those of the last whole one.

    What is cut off stays unknown.
    """
    outputs: list[list[str]] = [[]]
    for line in _lines(text):
        if VERSION.search(line) and line.startswith("|") and any(one.startswith("|") for one in outputs[-1]):
            outputs.append([])
        outputs[-1].append(line)
    tables = [_parse(lines) for lines in outputs]
    return next((table for table in reversed(tables) if not table.is_partial), tables[-1])


def _parse(lines: Sequence[str]) -> Info:
    """Return what the lines of one output say."""
    info = Info()
    columns, first, width = _Columns(), None, LEAST_CELLS
    for line in lines:
        if line == "...":
            info.is_partial = True
        if not line.startswith("|"):
            continue
        cells = _cells(line)
        if not line.endswith("|") or 1 < len(cells) < width:  # cut inside a row: 65 may be the begin of 65536
            info.is_partial = True
            continue
        version, idle = VERSION.search(line), IDLE.search(line)
        if version:
            info.npu_smi_version, info.driver_version = version.groups()
        elif idle:
            info.idle_npus.append(int(idle.group(1)))
        elif "Process id" in line:
            unit = UNIT.search(line)
            info.process_table, info.process_memory_unit = True, unit.group(1) if unit else None
            width = len(cells)
        elif "Bus-Id" in line:
            columns, width = _read_header(cells), len(cells)
        elif info.process_table:
            process = _read_process(cells)
            info.processes += [process] if process else []
        elif _is_first_line(cells, first):
            info.is_partial |= first is not None
            first = _first_line(cells)
        elif len(cells) >= 3 and (BUS.fullmatch(cells[-2]) or cells[-2] in UNSAID):
            info.is_partial |= first is None
            info.cards.append(_second_line(cells, first or Card(), columns))
            first = None
    info.is_partial |= first is not None or not info.cards
    return info
