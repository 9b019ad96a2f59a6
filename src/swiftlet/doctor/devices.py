"""The devices: may this user open them, what their driver's program says, who holds them, which ones a run takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from swiftlet.device.cards import FULL_SHARE, Chip, is_busy
from swiftlet.device.nvidia_smi import look_at_gpus
from swiftlet.device.visible import check_visible, hiding
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
    """Compare what the driver's program says with the nodes, and name unhealthy and busy cards."""
    here = scene.installation
    if not here.is_ascend:
        return
    if scene.smi is None:
        if here.nodes:
            yield found("device.smi_missing")
        return
    for said in scene.smi.failures:
        yield found("device.smi_failed", said=said)
    chips = scene.chips
    if chips and len(chips) < len(here.nodes):
        yield found("device.fewer", nodes=len(here.nodes), found=len(chips))
    free = [chip.logical for chip in chips if not is_busy(chip) and chip.card.health in HARMLESS]
    for chip in chips:
        yield from _card(scene, chip, ",".join(map(str, free)) or "none")


def _card(scene: Scene, chip: Chip, free: str) -> Iterator[Finding]:
    card = chip.card
    names = {"id": chip.logical, "name": chip.name}
    if card.health not in HARMLESS:
        kind = "device.health_warning" if card.health == "Warning" else "device.health"
        yield found(kind, **names, health=card.health, npu=card.npu)
    if is_busy(chip):
        used, total = card.used_mb or 0, card.total_mb or 1
        holders = (
            ", ".join(f"{one.pid} {one.name}".strip() for one in chip.processes) or "by whom is not shown"
        )
        kind = "device.full" if used > FULL_SHARE * total else "device.busy"
        yield found(kind, **names, used=used, total=total, holders=holders, free=free)
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
    for mistake in check_visible(scene.environ, scene.machine):
        yield found("visible.value", message=mistake.message, hint=mistake.hint.removeprefix("type "))
    for name in hiding(scene.environ, scene.machine):
        yield found("visible.hidden", name=name)


def check_gpus(scene: Scene) -> Iterator[Finding]:
    """Look whether the driver of GPUs answers."""
    if scene.machine.has_gpus:
        gpus, said = look_at_gpus(scene.environ)
        if not gpus:
            yield found("gpu.smi", said=said or "nothing: the program is not on the search path")
