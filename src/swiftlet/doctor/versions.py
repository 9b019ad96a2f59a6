"""Python, packages and the toolkit: what is missing, too old, of unequal versions, or known to be weak."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from swiftlet.device.installation import release
from swiftlet.doctor.finding import Finding, found
from swiftlet.doctor.scene import Scene, normal, table

LEAST_PYTHON = (3, 10)


def check_python(scene: Scene) -> Iterator[Finding]:
    """Compare Python with what swiftlet and torch for NPUs ask for."""
    here = ".".join(map(str, scene.python))
    if scene.python < LEAST_PYTHON:
        yield found("python.old", found=here, least=".".join(map(str, LEAST_PYTHON)))
    torch = scene.version("torch")
    if torch is None or not needs_plugin(scene):
        return
    limits = table("compatibility")["pythons"].get(".".join(torch.split(".")[:2]))
    if limits and not _whole(limits[0]) <= scene.python <= _whole(limits[1]):
        yield found("python.plugin", torch=torch, first=limits[0], last=limits[1], found=here)


def _whole(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def needs_plugin(scene: Scene) -> bool:
    """Return whether runs on this machine go through the plugin for NPUs."""
    return scene.installation.is_ascend or scene.version(table("compatibility")["plugin"]) is not None


def check_torch(scene: Scene) -> Iterator[Finding]:
    """Look for torch, its plugin, and whether they belong together."""
    torch = scene.version("torch")
    if torch is None:
        yield found("torch.missing")
        return
    base = torch.split("+")[0]
    plugin = scene.version(table("compatibility")["plugin"])
    if plugin is None and scene.machine.has_npus:
        yield found("torch.plugin_missing", torch=base)
    if plugin is not None and _release(plugin) != _release(base):
        yield found("torch.pair", torch=torch, plugin=plugin, base=base)
    if scene.machine.has_gpus and torch.endswith("+cpu"):
        yield found("torch.cpu_only", torch=torch)


def _release(version: str) -> tuple[int, ...]:
    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def check_packages(scene: Scene) -> Iterator[Finding]:
    """Compare the packages with what swiftlet asks for, and with the known weaknesses."""
    for name, versions in scene.packages.items():
        if len(versions) > 1:
            yield found("package.twice", name=name, found=", ".join(versions))
    for text in scene.requirements:
        requirement = Requirement(text)
        have = scene.version(requirement.name)
        asked = f"{requirement.name}{requirement.specifier}"
        if have is None:
            if normal(requirement.name) != "torch":
                yield found("package.missing", name=requirement.name, requirement=asked)
        elif not requirement.specifier.contains(have, prereleases=True):
            yield found("package.old", name=requirement.name, found=have, requirement=asked)
    for row in table("vulnerabilities")["rows"]:
        have = scene.version(row["package"])
        if have is not None and SpecifierSet(row["affected"]).contains(have, prereleases=True):
            yield found(
                "package.vulnerable", name=row["package"], found=have, **_only(row, "id", "what", "fixed")
            )


def _only(row: dict[str, str], *names: str) -> dict[str, str]:
    return {name: row[name] for name in names}


def check_compiler_packages(scene: Scene) -> Iterator[Finding]:
    """Look for the packages that the operator compiler of the toolkit imports."""
    if scene.installation.toolkit is None:
        return
    for name in table("compatibility")["tbe_packages"]:
        if scene.version(name) is None:
            yield found("toolkit.tbe_package", name=name)
    toolkit, numpy = scene.installation.toolkit_version, scene.version("numpy")
    have = release(toolkit or "")
    if have is None or numpy is None:
        return
    for row in table("compatibility")["numpy"]:
        limit = release(row["toolkit_below"])
        below = Version(row["numpy_below"])
        if limit and have < limit and scene.python < _whole(row["python_below"]) and Version(numpy) >= below:
            yield found("toolkit.numpy", found=numpy, toolkit=toolkit, below=row["numpy_below"])


def check_pairs(scene: Scene) -> Iterator[Finding]:
    """Compare the toolkit with the plugin of torch and with the driver."""
    tables = table("compatibility")
    toolkit = scene.installation.toolkit_version or ""
    have, plugin = release(toolkit), scene.version(tables["plugin"])
    if have is None:
        return
    row = _row_of(plugin) if plugin else None
    if row is not None:
        allowed = [release(text) for text in row.get("works_with", ())] or [release(row["toolkit"])] * 2
        low, high = allowed
        # a patch of the last version is allowed too; of a single version, its candidates as well
        if low and high and not (have[:2] == low[:2] == high[:2] or low <= have and have[:2] <= high[:2]):
            yield found("toolkit.plugin", plugin=plugin, wanted=row["toolkit"], found=toolkit)
    driver = release(scene.installation.driver or "")
    for limit in tables["drivers"]:
        wanted, least = release(limit["toolkit"]), release(limit["least"])
        if driver and wanted and least and have[:2] == wanted[:2] and driver < least:
            yield found(
                "toolkit.driver", found=scene.installation.driver, toolkit=toolkit, least=limit["least"]
            )


def _row_of(plugin: str) -> dict[str, str] | None:
    """Return the row of a version of the plugin: its own, else of the latest post-release before it."""
    try:
        have = Version(plugin)
    except InvalidVersion:
        return None
    rows = [(Version(row["plugin"]), row) for row in table("compatibility")["pairs"]]
    older = [(version, row) for version, row in rows if version.release == have.release and version <= have]
    return max(older, key=lambda pair: pair[0])[1] if older else None
