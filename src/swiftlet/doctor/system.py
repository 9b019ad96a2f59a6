"""The system around a run: shared memory, disks, limits, ports, network cards, and settings of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from swiftlet.device.interfaces import chosen_interfaces
from swiftlet.doctor.finding import Finding, found, gigabytes
from swiftlet.doctor.scene import NO_LIMIT, Scene, table
from swiftlet.doctor.versions import needs_plugin

LEAST_SHM, LEAST_DISK, FULL_DISK, LEAST_MEMORY = 1 << 30, 20 << 30, 1 << 30, 4 << 30
LEAST_MEMLOCK_KB = 64 * 1024
LEAST_FILES = 4096
CACHES = ("HF_HOME", "MODELSCOPE_CACHE", "XDG_CACHE_HOME", "TMPDIR")
AVAILABLE = re.compile(r"^MemAvailable:\s*(\d+) kB", re.MULTILINE)
LISTENING = "0A"  # state of a socket in /proc/net/tcp
PROCESSES, PORT = "NPROC_PER_NODE", "MASTER_PORT"


def check_memory(scene: Scene) -> Iterator[Finding]:
    """Look at shared memory, the host's memory, and what a process may lock."""
    shm = scene.free("/dev/shm")
    if shm is not None and shm < LEAST_SHM:
        yield found("system.shm", free=gigabytes(shm))
    text = scene.path("proc/meminfo")
    available = AVAILABLE.search(text.read_text("ascii", "replace")) if text.is_file() else None
    if available and int(available[1]) * 1024 < LEAST_MEMORY:
        yield found("system.memory", free=gigabytes(int(available[1]) * 1024))
    if needs_plugin(scene) and NO_LIMIT < scene.memlock_kb < LEAST_MEMLOCK_KB:
        yield found("system.memlock", found=scene.memlock_kb)
    if NO_LIMIT < scene.open_files < LEAST_FILES:
        yield found("system.files", found=scene.open_files)


def check_disks(scene: Scene) -> Iterator[Finding]:
    """Look at the room in the working folder and at the caches."""
    for place in dict.fromkeys((scene.environ.get("PWD", "/"), "/tmp")):
        free = scene.free(place)
        if free is not None and free < LEAST_DISK:
            kind = "system.disk_full" if free < FULL_DISK else "system.disk"
            if place != "/tmp" or kind == "system.disk_full":
                yield found(kind, path=place, free=gigabytes(free))
    for name in CACHES:
        value = scene.environ.get(name)
        if value and not _can_write(scene.path(value)):
            yield found("system.unwritable", name=name, path=value)


def _can_write(folder: Path) -> bool:
    """Return whether a file can be made in this folder, or the folder itself can be made."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _listening(scene: Scene) -> set[int]:
    """Return the TCP ports that something listens on."""
    ports = set()
    for name in ("tcp", "tcp6"):
        file = scene.path(f"proc/net/{name}")
        for line in file.read_text("ascii", "replace").splitlines()[1:] if file.is_file() else ():
            cells = line.split()
            if len(cells) > 3 and cells[3] == LISTENING:
                ports.add(int(cells[1].rpartition(":")[2], 16))
    return ports


def check_network(scene: Scene) -> Iterator[Finding]:
    """Look at the ports that a run binds, and at the network cards that variables name."""
    used = _listening(scene)
    port = scene.environ.get(PORT, "")
    if port.isdecimal() and int(port) in used:
        yield found("system.master_port", port=port, other=_other(int(port), 1, used))
    row = table("settings")["port_range"]
    first = scene.environ.get(row["name"], "")
    begin = int(first) if first.isdecimal() else row["first"]
    taken = [one for one in range(begin, begin + row["number"]) if one in used]
    if taken and needs_plugin(scene):
        yield found("system.port", port=taken[0], name=row["name"], other=_other(begin, row["number"], used))
    folder = scene.path("sys/class/net")
    cards = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for name in table("settings")["interfaces"]:
        value = scene.environ.get(name, "")
        if cards and value and not chosen_interfaces(value, cards):
            real = next((card for card in cards if card != "lo"), cards[0])
            yield found("system.interface", name=name, value=value, found=", ".join(cards), first=real)


def _other(begin: int, number: int, used: set[int]) -> int:
    """Return the next port from which `number` ports are free."""
    start = begin + number
    while any(port in used for port in range(start, start + number)):
        start += number
    return start


def check_settings(scene: Scene) -> Iterator[Finding]:
    """Look at variables out of their range, that slow a run down, or that nothing reads here."""
    tables = table("settings")
    processes = scene.environ.get(PROCESSES, "").strip()
    if processes.isdecimal() and int(processes) > scene.cpus:
        yield found("system.cpus", processes=processes, cpus=scene.cpus)
    for row in tables["ranges"]:
        value = scene.environ.get(row["name"])
        if value is not None and not _in_range(value, row["least"], row["most"]):
            most = "any number" if row["most"] is None else row["most"]
            yield found("setting.range", name=row["name"], value=value, least=row["least"], most=most)
    for row in tables["slow"]:
        if scene.environ.get(row["name"]) == row["value"]:
            yield found("setting.slow", **row)
    if scene.machine.has_npus:
        for row in tables["ignored"]:
            if row["name"] in scene.environ and row["instead"] not in scene.environ:
                yield found("setting.ignored", **row)


def _in_range(text: str, least: int, most: int | None) -> bool:
    if not text.strip().isdecimal():
        return False
    return least <= int(text) and (most is None or int(text) <= most)
