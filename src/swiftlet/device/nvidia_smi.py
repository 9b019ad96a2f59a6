"""What nvidia-smi says of the GPUs of this machine, asked for by column names."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from typing import NamedTuple

from swiftlet.device.machine import ask

COLUMNS = (
    "index",
    "name",
    "memory.used",
    "memory.total",
    "utilization.gpu",
    "temperature.gpu",
    "pci.bus_id",
    "driver_version",
)


class Gpu(NamedTuple):
    """One GPU, with sizes in MiB; None where the driver does not say."""

    number: int
    name: str
    used_mb: int | None
    total_mb: int | None
    busy_pct: int | None
    temp_c: int | None
    bus_id: str
    driver: str


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def parse_gpus(text: str) -> list[Gpu]:
    """Return the GPUs in the answer to a question for `COLUMNS`, without head and units."""
    gpus = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == len(COLUMNS) and row[0].isdigit():
            used, total, busy, temperature = (_whole(cell) for cell in row[2:6])
            gpus.append(Gpu(int(row[0]), row[1], used, total, busy, temperature, row[6], row[7]))
    return gpus


def find_nvidia_smi(environ: Mapping[str, str]) -> str | None:
    """Return the path of nvidia-smi, None when there is none."""
    return shutil.which("nvidia-smi", path=environ.get("PATH", ""))


def look_at_gpus(environ: Mapping[str, str]) -> tuple[list[Gpu], str]:
    """Return the GPUs of this machine, and why there are none where nvidia-smi says so."""
    program = find_nvidia_smi(environ)
    if program is None:
        return [], ""
    output = ask(
        program, f"--query-gpu={','.join(COLUMNS)}", "--format=csv,noheader,nounits", environ=environ
    )
    gpus = parse_gpus(output.text)
    said = output.text.strip().splitlines()
    return gpus, "" if gpus else said[0] if said else output.failure
