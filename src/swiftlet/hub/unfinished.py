"""Downloads that were cut short: a marker that is not empty from before the first file is fetched until all are there.

It lies in the folder that the hub's client keeps for its locks, so neither client takes it for a part of a repository,
and whoever shares the cache sees it. Files without a marker were placed there by someone, and are used as they are.
While a process downloads it holds the marker's lock, which the kernel frees however the process ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from swiftlet import log
from swiftlet.files import hold

SUFFIX = ".unfinished"
GLANCE_S = 0.5


def marker_of(locks: Path, kind: str, repo: str, revision: str) -> Path:
    """Return where the marker of a download lies, whether it is there or not; the id's case does not matter."""
    name = f"swiftlet-{kind}s--{repo.replace('/', '--')}".lower()
    return locks / f"{name}@{quote(revision, safe='')}{SUFFIX}"


def find_marker(marker: Path, found: Path | None) -> Path | None:
    """Return the marker that says that files of a cached copy may be lacking, None where there is none.

    Args:
        marker: of the revision that is asked for.
        found: the copy; a download of another revision may have made it, as a branch is a name of a commit;
            None where what is cached is too little to be one.
    """
    if _is_set(marker):
        return marker
    if found is None:
        return None
    stem = marker.name.partition("@")[0] + "@"
    for other in sorted(marker.parent.glob(f"*{SUFFIX}")):
        revision = unquote(other.name.removeprefix(stem).removesuffix(SUFFIX))
        if other.name.startswith(stem) and found.name == _commit(found, revision) and _is_set(other):
            return other
    return None


class Marker:
    """A marker whose lock is held."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def set(self, text: str) -> None:
        """Say that files are being fetched from now on."""
        os.pwrite(self._descriptor, text.encode(), 0)

    def clear(self) -> None:
        """Say that what is there may be used."""
        os.ftruncate(self._descriptor, 0)

    @property
    def is_set(self) -> bool:
        """Return whether a download is under way, or was cut short."""
        return os.fstat(self._descriptor).st_size > 0


@contextmanager
def held(path: Path) -> Iterator[Marker]:
    """Hold a marker while the block runs; it goes with the block where it is not set then.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(path)
    marker = Marker(descriptor)
    try:
        yield marker
    finally:
        if not marker.is_set:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Return a descriptor of the marker, locked, once no other process holds it."""

    def wait(is_first: bool) -> None:
        if is_first:
            log.info("another process is downloading the same files; waiting for it")
        time.sleep(GLANCE_S)

    # Without locks both download, and the clients lock each file themselves.
    return hold(path, on_held=wait, on_no_locks=lambda: None)


def _is_set(marker: Path) -> bool:
    try:
        return marker.stat().st_size > 0
    except OSError:
        return False


def _commit(found: Path, revision: str) -> str:
    """Return the name of the folder that a revision is kept in, next to a copy of the same repository."""
    try:
        return (found.parent.parent / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return revision
