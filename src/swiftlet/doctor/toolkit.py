"""The toolkit of NPUs in this shell: there, whole, for this machine and this chip, and on the paths of programs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from swiftlet.device.installation import (
    DRIVER,
    DRIVER_LIBRARY,
    HOME_PATH,
    INSTALL_INFO,
    KERNELS,
    LIBRARY_PATH,
    MANAGERS,
    OPP_PATH,
    TOOLKITS,
)
from swiftlet.doctor.finding import Finding, found
from swiftlet.doctor.scene import Scene, table

PYTHON_PATH = "PYTHONPATH"
PYTHON_FOLDER = "python/site-packages"


def check_toolkit(scene: Scene) -> Iterator[Finding]:
    """Look for the toolkit, and whether its set_env.sh was sourced."""
    here = scene.installation
    for link in here.dangling:
        yield found("toolkit.dangling", link=here.shown(link), target=link.readlink())
    if here.toolkit is None:
        if here.is_ascend and not here.dangling:
            yield found("toolkit.missing", places=", ".join(f"/{place}" for place in TOOLKITS))
        return
    architecture = here.toolkit_architecture
    if architecture and architecture != scene.architecture:
        yield found(
            "toolkit.architecture", folder=here.toolkit, found=architecture, machine=scene.architecture
        )
    yield from _kernels(scene)
    yield from _environment(scene)


def _kernels(scene: Scene) -> Iterator[Finding]:
    here = scene.installation
    if here.toolkit is None:
        return
    if not here.kernels:
        yield found(
            "toolkit.kernels", folder=here.shown(here.toolkit / KERNELS), toolkit=here.toolkit_version or ""
        )
        return
    for chip in sorted({chip.card.name for chip in scene.chips if chip.card.name}):
        rows = table("compatibility")["kernels"]
        wanted = next((row["folder"] for row in rows if re.search(row["name"], chip)), None)
        if wanted and wanted not in here.kernels:
            yield found("toolkit.kernels_other", found=", ".join(here.kernels), chip=chip, wanted=wanted)


def _environment(scene: Scene) -> Iterator[Finding]:
    """Look at the variables that set_env.sh sets: none of them, or one that is wrong."""
    here, script = scene.installation, scene.installation.script
    home, opp = scene.environ.get(HOME_PATH, ""), scene.environ.get(OPP_PATH, "")
    deepspeed = scene.version("deepspeed")
    libraries = scene.environ.get(LIBRARY_PATH, "")
    if here.toolkit is None:
        return
    folder = here.shown(here.toolkit)
    if not home and not opp and str(folder.parent) not in libraries:
        yield found("toolkit.not_sourced", folder=folder, script=script)
        return
    if not home and deepspeed:
        yield found("deepspeed.home", found=deepspeed, script=script)
    for value, which in ((home, "toolkit.home_gone"), (opp, "toolkit.opp_gone")):
        if value and not scene.path(value).is_dir():
            yield found(which, value=value, script=script)
    if not _holds(libraries, folder.parent.name, "lib64"):
        yield found("toolkit.library_path", folder=folder / "lib64", script=script)
    if not _holds(scene.environ.get(PYTHON_PATH, ""), folder.parent.name, PYTHON_FOLDER):
        yield found("toolkit.python_path", folder=folder / PYTHON_FOLDER, script=script)


def _holds(paths: str, inside: str, end: str) -> bool:
    """Return whether a list of paths holds one inside a folder of this name that ends so."""
    return any(inside in path and path.rstrip("/").endswith(end) for path in paths.split(":"))


def check_driver(scene: Scene) -> Iterator[Finding]:
    """Look at the driver's folder, libraries and nodes, as a container must have them mounted."""
    here = scene.installation
    if not here.is_ascend:
        return
    folder = scene.path(DRIVER)
    if here.driver is None:
        if here.nodes:
            yield found("driver.missing", folder=f"/{DRIVER}")
        return
    if not here.nodes:
        yield found("device.none", driver=here.driver)
    else:
        for name in MANAGERS:
            if not scene.path(f"dev/{name}").exists():
                yield found("device.manager", name=name)
    libraries = list(folder.glob(f"lib64/**/{DRIVER_LIBRARY}"))
    if not libraries:
        yield found("driver.library", name=DRIVER_LIBRARY, folder=here.shown(folder / "lib64"))
    elif f"/{DRIVER}/lib64" not in scene.environ.get(LIBRARY_PATH, ""):
        yield found("driver.library_path", folder=here.shown(libraries[0].parent))
    if not scene.path(INSTALL_INFO).is_file():
        yield found("driver.install_info", path=f"/{INSTALL_INFO}")
