"""What is installed for Ascend NPUs below a root folder: driver, nodes, toolkit, kernels. Nothing is imported or run.

Sources of the places: CANN's installation guide and what its set_env.sh exports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from swiftlet.device.machine import DAVINCI

DRIVER = "usr/local/Ascend/driver"
INSTALL_INFO = "etc/ascend_install.info"
MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")
TOOLKITS = ("usr/local/Ascend/ascend-toolkit/latest", "usr/local/Ascend/cann", "usr/local/Ascend/latest")
DRIVER_LIBRARY = "libascend_hal.so"
HOME_PATH, OPP_PATH, LIBRARY_PATH = "ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "LD_LIBRARY_PATH"
KERNELS = "opp/built-in/op_impl/ai_core/tbe/kernel"
VERSION_LINE = re.compile(r"^\s*[Vv]ersion\s*=\s*([^\s]+)", re.MULTILINE)
ARCHITECTURE_LINE = re.compile(r"^\s*arch\s*=\s*([^\s]+)", re.MULTILINE)
RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.[Rr][Cc](\d+)|\.(\d+))?")


class Release(NamedTuple):
    """A version of CANN or of the driver that can be compared: 8.1.RC1 comes before 8.1.0."""

    major: int
    minor: int
    is_final: bool
    number: int


def release(text: str) -> Release | None:
    """Return the version in a text such as 8.3.RC1, 24.1.rc3 or 9.0.0-beta.2, None where there is none."""
    found = RELEASE.search(text)
    if found is None:
        return None
    candidate = found[3] is not None
    return Release(int(found[1]), int(found[2]), not candidate, int(found[3] or found[4] or 0))


@dataclass(frozen=True)
class Installation:
    """The parts that are there; the paths are below the root that was looked at."""

    root: Path
    nodes: tuple[str, ...] = ()
    driver: str | None = None  # its version; empty where it does not say
    toolkit: Path | None = None
    toolkit_version: str | None = None
    toolkit_architecture: str | None = None
    dangling: tuple[Path, ...] = ()
    kernels: tuple[str, ...] = field(default=())

    @property
    def is_ascend(self) -> bool:
        """Whether anything of Ascend is on this machine."""
        return bool(self.nodes) or self.driver is not None or self.toolkit is not None

    @property
    def script(self) -> Path:
        """The set_env.sh of the toolkit, where it lies or would lie, as programs name it."""
        folder = self.toolkit or self.root / TOOLKITS[0]
        beside, above = folder / "set_env.sh", folder.parent / "set_env.sh"
        return self.shown(above if above.is_file() or not beside.is_file() else beside)

    def shown(self, path: Path) -> Path:
        """Return a path as programs on this machine name it."""
        return Path("/") / path.relative_to(self.root)


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1].strip('"') if found else None


def _toolkit(environ: Mapping[str, str], root: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the toolkit in use or lying ready, and the links of it that lead nowhere."""
    named = environ.get(HOME_PATH, "")
    home = Path(environ.get("HOME", "/")) / "Ascend/ascend-toolkit/latest"
    places = [root / named.lstrip("/")] if named else []
    places += [*(root / place for place in TOOLKITS), root / str(home).lstrip("/")]
    there = next((place for place in places if place.is_dir()), None)
    return there, tuple(place for place in places if place.is_symlink() and not place.exists())


def look_at_installation(environ: Mapping[str, str], root: Path = Path("/")) -> Installation:
    """Return what is installed for NPUs below `root`."""
    nodes = [name for name in _names(root / "dev") if DAVINCI.fullmatch(name)]
    folder, driver = root / DRIVER, None
    if folder.is_dir():
        driver = _first(VERSION_LINE, _read(folder / "version.info")) or ""
    toolkit, dangling = _toolkit(environ, root)
    info, kernels = "", []
    if toolkit is not None:
        files = sorted(toolkit.glob("*-linux/ascend_toolkit_install.info"))
        info = _read(files[0]) if files else _read(toolkit / "ascend_toolkit_install.info")
        kernels = [name for name in _names(toolkit / KERNELS) if (toolkit / KERNELS / name).is_dir()]
    return Installation(
        root,
        tuple(sorted(nodes, key=lambda name: int(name.removeprefix("davinci")))),
        driver,
        toolkit,
        _first(VERSION_LINE, info),
        _first(ARCHITECTURE_LINE, info),
        dangling,
        tuple(kernels),
    )
