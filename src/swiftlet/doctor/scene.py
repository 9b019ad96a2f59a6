"""What the doctor looks at: the environment, the files below a root, the installed packages, the limits.

A test hands over a folder as root and an environment of its own; the checks read them as they read a real machine.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import re
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swiftlet.device.cards import Cards, Chip, chips_of, look_at_cards
from swiftlet.device.installation import Installation, look_at_installation
from swiftlet.device.machine import Machine, look_at_nodes
from swiftlet.device.processors import usable_processors
from swiftlet.doctor.tables import OURS

NO_LIMIT = -1


@dataclass(frozen=True)
class Scene:
    """One machine, as the checks see it."""

    environ: Mapping[str, str]
    root: Path = Path("/")
    packages: Mapping[str, Sequence[str]] = field(default_factory=dict)  # normalised name -> versions found
    requirements: Sequence[str] = ()
    python: tuple[int, int] = (3, 11)
    architecture: str = "x86_64"
    cpus: int = 1
    memlock_kb: int = NO_LIMIT
    open_files: int = NO_LIMIT
    smi_timeout_s: float = 5.0
    # By path; what is not named is asked of the system.
    free_bytes: Mapping[str, int] = field(default_factory=dict)

    @functools.cached_property
    def installation(self) -> Installation:
        """What is installed for NPUs."""
        return look_at_installation(self.environ, self.root)

    @functools.cached_property
    def machine(self) -> Machine:
        """How many devices there are: by their nodes, else by what the driver's program says, which is asked once."""
        seen = look_at_nodes(self.root / "dev")
        if seen.npus is None and self.smi:
            return seen._replace(npus=len(self.smi.mapping) or None)
        return seen

    @functools.cached_property
    def smi(self) -> Cards | None:
        """What the driver's program says of the cards, None when there is no such program."""
        return look_at_cards(self.environ, with_topology=False, timeout_s=self.smi_timeout_s)

    @property
    def chips(self) -> list[Chip]:
        """The cards in the order in which programs number them."""
        return chips_of(self.smi) if self.smi else []

    def version(self, package: str) -> str | None:
        """Return the version of a package, None when it is not installed."""
        found = self.packages.get(normal(package), ())
        return found[0] if found else None

    def path(self, place: str | Path) -> Path:
        """Return a path of this machine below the root."""
        return self.root / str(place).lstrip("/")

    def free(self, place: str) -> int | None:
        """Return the free bytes of the disk of a folder of this machine, None when there is no such folder."""
        if place in self.free_bytes:
            return self.free_bytes[place]
        folder = self.path(place)
        return shutil.disk_usage(folder).free if folder.is_dir() else None


def normal(name: str) -> str:
    """Return the name of a package as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_packages(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the versions of each package whose metadata lies in these folders, the first folder's first."""
    found: dict[str, list[str]] = {}
    for package in importlib.metadata.distributions(path=list(paths)):
        name, version = package.metadata["Name"], package.version
        if name and version not in found.setdefault(normal(name), []):
            found[normal(name)].append(version)
    return found


def look_around(environ: Mapping[str, str]) -> Scene:
    """Return the machine that this process runs on."""
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = importlib.metadata.requires("swiftlet") or []
    return Scene(
        environ,
        packages=read_packages(sys.path),
        requirements=[one for one in own if "extra ==" not in one],
        python=sys.version_info[:2],
        architecture=platform.machine(),
        cpus=usable_processors(),
        memlock_kb=NO_LIMIT if memlock == resource.RLIM_INFINITY else memlock // 1024,
        open_files=NO_LIMIT if files == resource.RLIM_INFINITY else files,
    )


@functools.cache
def table(name: str) -> dict[str, Any]:
    """Return one of our tables."""
    content: dict[str, Any] = json.loads((OURS / f"{name}.json").read_text("utf-8"))
    return content
