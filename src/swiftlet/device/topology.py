"""How devices are connected, and which processors are next to each: the matrix of `npu-smi info -t topo`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from swiftlet.errors import SwiftletError

PCI = Path("/sys/bus/pci/devices")
NAME = re.compile(r"(?:NPU|Phy-ID)\d+")
OTHER = re.compile(r"NIC\d+")
LINK = re.compile(r"[A-Z][A-Za-z0-9_+-]*")
RANGE = re.compile(r"(\d+)(?:-(\d+))?")
AFFINITY = re.compile(r"(\w+) Affinity")
# Source: the legend that npu-smi prints below the matrix.
LINKS = {
    "X": "itself",
    "SYS": "across PCIe and processors",
    "PHB": "across one processor's PCIe bridge",
    "PIX": "across one PCIe switch",
    "PXB": "across several PCIe switches",
    "HCCS": "direct, by HCCS",
    "HCCS_SW": "HCCS through a switch",
    "SIO": "inside one card (SIO)",
    "UB": "direct, by UB",
    "NA": "unknown",
}


class TopologyError(SwiftletError):
    """A text that is no matrix of a machine."""


class Topology(NamedTuple):
    """The matrix by names as printed (NPU0 or Phy-ID0), and the processors of each; none where not printed."""

    ids: list[str]
    matrix: list[list[str]]
    cpu_affinity: dict[str, list[list[int]]]
    affinity_column: bool  # a table without one says nothing of processors, which is not the same as none


def parse_ranges(text: str) -> list[list[int]]:
    """Return a list of processors such as 0-63,128-191 as pairs (first, last); empty when it is none."""
    ranges = []
    for part in re.sub(r"\s", "", text).split(","):
        found = RANGE.fullmatch(part)
        if found is None:
            return []
        first = int(found.group(1))
        ranges.append([first, int(found.group(2) or first)])
    return ranges


def cpus_beside(bus_id: str, folder: Path = PCI) -> list[list[int]]:
    """Return the processors next to a PCI address, as the kernel knows them, as pairs (first, last)."""
    place = folder / bus_id.lower() / "local_cpulist"
    return parse_ranges(place.read_text(encoding="ascii")) if place.is_file() else []


def each_of(ranges: Iterable[Sequence[int]]) -> list[int]:
    """Return the processors in pairs (first, last)."""
    return [cpu for first, last in ranges for cpu in range(first, last + 1)]


def is_topology(text: str) -> bool:
    """Return whether a line of the text is the head of a matrix."""
    return any(_head(line) for line in text.splitlines())


def _head(line: str) -> list[str]:
    """Return the devices that a head names, empty for another line: its first word is already a device."""
    words = AFFINITY.sub("", line).split()
    devices = [word for word in words if re.fullmatch(r"(?:NPU|Phy-ID|NIC)\w+", word)]
    return devices if devices and devices == words else []


def parse_topology(text: str) -> Topology:
    """Return the matrix and the processors next to each device.

    Raises:
        TopologyError: there is no matrix, or one of placeholders, as documents show it.
    """
    columns: list[str] = []
    affinities: list[str] = []
    rows: dict[str, tuple[list[str], str]] = {}
    for line in text.splitlines():
        words = line.split()
        if not columns:
            columns, affinities = _head(line), AFFINITY.findall(line)
        elif words and words[0] in columns:
            links, rest = (
                words[1 : 1 + len(columns)],
                line.split(maxsplit=len(columns) + 1)[1 + len(columns) :],
            )
            rows[words[0]] = (links, _cpu_cell(rest[0] if rest else "", affinities))
    npus = [name for name in columns if NAME.fullmatch(name)]
    others = [name for name in columns if OTHER.fullmatch(name)]
    if not npus:
        raise TopologyError("this is no matrix of devices", "give the output of npu-smi info -t topo")
    if len(npus) + len(others) < len(columns):
        strange = next(name for name in columns if name not in (*npus, *others))
        raise TopologyError(f"{strange} is a placeholder of a document", "give a machine's own output")
    return _checked(npus, columns, rows, "CPU" in affinities)


def _cpu_cell(rest: str, affinities: list[str]) -> str:
    """Return the processors among the cells behind the links; there may be one column of nodes beside them."""
    cells = re.sub(r",\s+", ",", rest).split()
    at = affinities.index("CPU") if "CPU" in affinities else len(cells)
    return cells[at] if at < len(cells) else ""


def _checked(
    npus: list[str], columns: list[str], rows: dict[str, tuple[list[str], str]], has_affinity: bool
) -> Topology:
    matrix, affinity = [], {}
    for name in npus:
        links, rest = rows.get(name, ([], ""))
        if len(links) < len(columns) or not all(LINK.fullmatch(link) for link in links):
            raise TopologyError(f"the row of {name} is cut off or holds no links", "give the whole output")
        by_name = dict(zip(columns, links, strict=True))
        matrix.append([by_name[other] for other in npus])
        if has_affinity:
            affinity[name] = parse_ranges(rest)
    return Topology(npus, matrix, affinity, has_affinity)
