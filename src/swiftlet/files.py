"""Files that are whole or absent, that are on the disk, that one process holds, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

CHUNK_BYTES = 2**22
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of file systems without them
NO_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)  # of file systems that flush files alone


def sha256(path: Path) -> str:
    """Return the sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def files_like(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Return the names of the files of a folder that match, by the patterns' order."""
    return [str(path.relative_to(folder)) for pattern in patterns for path in sorted(folder.glob(pattern))]


def code_hash(folder: Path) -> str:
    """Return the sha256 of the names and contents of a folder's Python files: a changed copy keeps its version."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; a folder only where the file system can, as databases do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether a path of a folder is elsewhere, links followed. Links within a Hugging Face cache are not."""
    real = folder.resolve()
    repository = real.parent.parent
    is_snapshot = real.parent.name == "snapshots" and (repository / "blobs").is_dir()
    return not path.resolve().is_relative_to(repository if is_snapshot else real)


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file still has this name."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def hold(
    path: Path, *, on_held: Callable[[bool], None], on_no_locks: Callable[[], None] | None = None
) -> int:
    """Return a descriptor of the lock file `path`, which is made where it is missing, once no other process holds it.

    The kernel frees it when its process ends, however it ends, so one that was left behind is never in the way.

    Args:
        on_held: called each time it is found held, with True the first time; it waits a moment, or raises.
        on_no_locks: called where the file system has no locks: the file then counts as held. An error when not given.

    Raises:
        OSError: it cannot be made or locked.
    """
    is_first = True
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            on_held(is_first)
            is_first = False
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS or on_no_locks is None:
                os.close(descriptor)
                raise
            on_no_locks()
        if is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # whoever held it has removed it meanwhile


def let_go(path: Path, descriptor: int) -> None:
    """Free a lock file and remove it; where its disk takes no changes any more, it stays, and is in nobody's way."""
    with contextlib.suppress(OSError):
        if is_at(path, descriptor):
            path.unlink()
    os.close(descriptor)


def move(path: Path, target: Path) -> None:
    """Rename a file or folder; a folder that came with the image of a container is copied, as overlayfs renames none.

    Raises:
        OSError: it cannot be moved; what was there still is.
    """
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(path, target)
        shutil.rmtree(path)


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file all of `content` or, where the disk takes only a part, nothing: the next one is not glued to it.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            written = 0
            while written < len(content):  # a full disk takes a part, and says why at the next try
                written += file.write(content[written:])
        except OSError:
            with contextlib.suppress(OSError):  # what is no regular file has no end to cut off
                file.truncate(start)
            raise


def write_whole(path: Path, text: str, *, is_synced: bool = False) -> None:
    """Write a text file in one step: whoever reads it finds the former content or the new one.

    Args:
        is_synced: it is on the disk before it has its name, so that it is whole after the machine went down too.
    """
    draft = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        if is_synced:
            sync(draft)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
