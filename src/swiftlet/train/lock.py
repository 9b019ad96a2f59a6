"""One run a folder: a lock file that names its owner. A draft is a folder that is locked itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from swiftlet import log
from swiftlet.errors import UsageError
from swiftlet.files import hold, is_at, let_go
from swiftlet.train.manifest import DRAFT, saving

NAME = ".lock"
PATIENCE_S, PAUSE_S = 20.0, 0.1  # for a run that has been killed and is still ending
ENDED_STATES = ("Z", "X", "x")  # of a process, in proc(5)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_owned: dict[Path, int] = {}  # the folders of this process, and the descriptors that hold their locks


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Own `folder` while the block runs; drafts that a killed run left in it are removed.

    Raises:
        UsageError: the folder cannot be written, or another run owns it.
    """
    path = folder / NAME
    _owned[folder] = _take(path)
    try:
        try:
            remove_abandoned(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        yield
    finally:
        let_go(path, _owned.pop(folder))


def keep_owned(folder: Path) -> None:
    """Take the lock of an owned folder again where somebody has removed its file, or the whole folder, meanwhile.

    Raises:
        UsageError: another run owns the folder by now, or it cannot be written.
    """
    former = _owned.get(folder)
    if former is None or is_at(folder / NAME, former):
        return
    _owned[folder] = _take(folder / NAME)
    os.close(former)


@contextmanager
def drafting(draft: Path) -> Iterator[None]:
    """Make a folder to be renamed when it is whole; until then it is locked, and goes when the block ends.

    Raises:
        SaveError: it cannot be made.
    """
    with saving(draft.parent):
        draft.mkdir(parents=True)
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
        shutil.rmtree(draft, ignore_errors=True)


def remove_abandoned(folder: Path, prefix: str = DRAFT) -> None:
    """Remove what killed programs have left half-written in `folder`, but no draft that is locked."""
    for draft in folder.glob(prefix + "*"):
        if not draft.is_dir():
            draft.unlink(missing_ok=True)
            continue
        try:
            descriptor = os.open(draft, os.O_RDONLY)
        except FileNotFoundError:  # its maker, or another run, was faster
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                continue
        finally:
            os.close(descriptor)
        shutil.rmtree(draft, ignore_errors=True)


def _take(path: Path) -> int:
    """Return a descriptor of the held lock file, which names this process by then."""
    folder, until = path.parent, time.monotonic() + PATIENCE_S

    def wait(_: bool) -> None:
        owner = _read_owner(path)
        if time.monotonic() >= until or not _is_ending(owner):
            raise _refusal(path, owner)
        time.sleep(PAUSE_S)

    def say() -> None:
        log.warning(f"the file system of {folder} has no locks: a second run in it would not be noticed")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = hold(path, on_held=wait, on_no_locks=say)
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_owner()).encode())
        except OSError:  # a full disk lets a file be made, but nothing be written into it
            let_go(path, descriptor)
            raise
    except OSError as error:
        raise unwritable(folder, error) from error
    return descriptor


def unwritable(folder: Path, error: OSError) -> UsageError:
    """Return the mistake of a run whose folder cannot be written."""
    return UsageError(f"{folder} cannot be written: {error.strerror or error}", "choose another --output_dir")


def _owner() -> dict[str, str | int]:
    boot = BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else ""
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot_id": boot}


def _read_owner(path: Path) -> dict[str, str | int]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_ending(owner: Mapping[str, str | int]) -> bool:
    """Return whether the owner is a process of this machine that has ended; its threads may hold files a while yet."""
    here = _owner()
    if not owner or any(owner.get(name) != here[name] for name in ("host", "boot_id")):
        return False
    try:
        after_name = Path(f"/proc/{owner.get('pid')}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except OSError:
        return True
    return after_name.split()[0] in ENDED_STATES


def _refusal(path: Path, owner: Mapping[str, str | int]) -> UsageError:
    who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
    return UsageError(
        f"{who} is already running in {path.parent}", "wait for it, or choose another --output_dir"
    )
