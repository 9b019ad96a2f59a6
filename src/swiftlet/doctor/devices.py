"""The devices: may this user open them, what their driver's program says, who holds them, which ones a run takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from swiftlet.device.cards import (
    FULL_SHARE,
    MOST_LISTED,
    Chip,
    busy_command,
    free_ids,
    health_command,
    is_busy,
    is_gone,
    numbers_of,
)
from swiftlet.device.nvidia_smi import look_at_gpus
from swiftlet.device.placement import chosen
from swiftlet.device.visible import ASCEND, check_visible, hiding
from swiftlet.doctor.finding import Finding, found
from swiftlet.doctor.scene import Scene

HARMLESS = ("OK", None)
PARENT = re.compile(r"^PPid:\s*(\d+)", re.MULTILINE)


def check_nodes(scene: Scene) -> Iterator[Finding]:
    """Look whether this user may open the nodes of devices."""
    for name in scene.installation.nodes:
        path = scene.path(f"dev/{name}")
        if not os.access(path, os.R_OK | os.W_OK):
            yield found("device.permission", path=f"/dev/{name}")
            return


def check_cards(scene: Scene) -> Iterator[Finding]:
    """Compare what the driver's program says with the nodes, and name unhealthy and busy cards.

    That program is asked wherever it is found: what it says counts with no node and no driver's folder, too.
    """
    nodes = scene.installation.nodes
    if scene.smi is None:
        if nodes:
            yield found("device.smi_missing")
        return
    for said in scene.smi.failures:
        yield found("device.smi_failed", said=said)
    chips = scene.chips
    if scene.smi.is_partial:
        yield found("device.smi_partial")
    elif chips and len(chips) < len(nodes):
        yield found("device.fewer", nodes=len(nodes), found=len(chips))
    # Where the variable names no card that is there, it is to be mended, and every card may be used then.
    used = chosen(ASCEND, scene.environ, len(chips)) or [chip.logical for chip in chips]
    for chip in chips:
        for finding in _card(scene, chip, free_ids(chips)):
            yield finding if chip.logical in used else finding._replace(is_aside=True)


def _card(scene: Scene, chip: Chip, free: Sequence[int]) -> Iterator[Finding]:
    card = chip.card
    names = {"id": chip.logical, "name": chip.name}
    if is_gone(chip):
        yield found("device.gone", **names, health=card.health or "?")
    elif card.health not in HARMLESS:
        kind = "device.health_warning" if card.health == "Warning" else "device.health"
        yield found(kind, **names, health=card.health, command=health_command(chip))
    if is_busy(chip):
        used, total = card.used_mb or 0, card.total_mb or 1
        holders = (
            ", ".join(f"{one.pid} {one.name}".strip() for one in chip.processes) or "by whom is not shown"
        )
        kind = "device.full" if used > FULL_SHARE * total else "device.busy"
        yield found(kind, **names, used=used, total=total, holders=holders, command=busy_command(chip, free))
        if len(chip.processes) >= MOST_LISTED:
            yield found("device.listed", **names, most=MOST_LISTED)
    for process in chip.processes:
        status = scene.path(f"proc/{process.pid}/status")
        parent = PARENT.search(status.read_text("utf-8", "replace")) if status.is_file() else None
        about = {"id": chip.logical, "pid": process.pid, "name": process.name or "?"}
        if parent is None:
            yield found("device.elsewhere", **about)
        elif parent[1] == "1":
            yield found("device.orphan", **about)


def check_visible_ids(scene: Scene) -> Iterator[Finding]:
    """Look at the variables that choose devices."""
    for mistake in check_visible(scene.environ, scene.machine, numbers_of(scene.chips)):
        yield found("visible.value", message=mistake.message, hint=mistake.hint.removeprefix("type "))
    for name in hiding(scene.environ, scene.machine):
        yield found("visible.hidden", name=name)


def check_gpus(scene: Scene) -> Iterator[Finding]:
    """Look whether the driver of GPUs answers."""
    if scene.machine.has_gpus:
        gpus, said = look_at_gpus(scene.environ)
        if not gpus:
            yield found("gpu.smi", said=said or "nothing: the program is not on the search path")
