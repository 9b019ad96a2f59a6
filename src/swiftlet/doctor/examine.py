"""All checks of a machine, in the order in which one breaks the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from swiftlet.doctor import devices, system, toolkit, versions
from swiftlet.doctor.finding import Finding
from swiftlet.doctor.scene import Scene

Check = Callable[[Scene], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    versions.check_python,
    versions.check_torch,
    versions.check_packages,
    toolkit.check_driver,
    devices.check_nodes,
    toolkit.check_toolkit,
    versions.check_pairs,
    versions.check_compiler_packages,
    devices.check_cards,
    devices.check_gpus,
    devices.check_visible_ids,
    system.check_memory,
    system.check_disks,
    system.check_network,
    system.check_settings,
)


def examine(scene: Scene) -> list[Finding]:
    """Return everything that is wrong with a machine, without running anything on its devices."""
    return [finding for check in CHECKS for finding in check(scene)]
