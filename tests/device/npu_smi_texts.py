"""What npu-smi prints, made for tests."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

HEAD = """+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc3                 Version: 24.1.rc3                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
"""
PROCESSES = """+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
"""
# The machine of the published tables: eight cards, and the processors next to each.
BUSES = ("C1", "C2", "81", "82", "01", "02", "41", "42")
NEAR = ("144-167", "144-167", "96-119", "96-119", "0-23", "0-23", "48-71", "48-71")


def card_lines(npu, *, health="OK", used=3316, total=65536, aicore=0, bus=None, name="910B3"):
    """The two lines of a card, with no space before the slash from 10000 MB on."""
    bus = bus or BUSES[npu % 8]
    return (
        f"| {npu:<6}{name:<20}| {health:<14}| {90.1:<12}{40:<18}{0:<5}/ {0:<14}|\n"
        f"| {0:<26}| 0000:{bus}:00.0  | {aicore:<12}{0:<5}/ {0:<11}{used:<5}/ {total:<14}|\n"
    )


def info_text(cards, processes=()):
    """The table of `npu-smi info`; `cards` are lines of `card_lines`, `processes` (npu, pid, name, MB)."""
    text = HEAD + "".join(cards) + PROCESSES
    for npu, pid, name, size in processes:
        text += f"| {npu:<8}{0:<18}| {pid:<14}| {name:<25}| {size:<24}|\n"
    return text


def mapping_text(npus):
    """The table of `npu-smi info -m`: logical ids count from 0, whatever the cards are called."""
    names = ("NPU ID", "Chip ID", "Chip Logic ID", "Chip Name")
    lines = ["".join(f"{name:<31}" for name in names)]
    lines += ["".join(f"{cell:<31}" for cell in (npu, 0, at, "Ascend 910B3")) for at, npu in enumerate(npus)]
    return "\n".join(lines) + "\n"


def topology_text(names, near, link="HCCS"):
    """The matrix of `npu-smi info -t topo`; `near` None leaves the column of processors out."""
    text = "\t   " + "".join(f"{name:<11}" for name in names) + ("CPU Affinity" if near else "") + "\n"
    for row, name in enumerate(names):
        cells = "".join(f"{'X' if row == at else link:<11}" for at in range(len(names)))
        text += f"{name:<11}{cells}{near[row] if near else ''}\n"
    return text + "\nLegend:\n\n  X    = Self\n  HCCS = Connection traversing HCCS.\n"


def install(place: Path, info="", mapping="", topology="", *, code=0):
    """Put a program npu-smi with these answers below `place` and return the environment that finds it."""
    folder = place / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "npu-smi"
    answers = {"info": info, "info -m": mapping, "info -t topo": topology}
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"sys.stdout.write({answers!r}.get(' '.join(sys.argv[1:]), ''))\nsys.exit({code})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": str(folder)}
