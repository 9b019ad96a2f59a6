"""A token store while it is made: files that only grow, and a journal of how much of them is good. No torch.

Whatever lies behind the journal's sizes when the program ended early is cut off, and the rows go on from there. A
folder becomes a store by one rename, once everything is in it; so a store is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swiftlet.config.filenames import BAD_ROWS
from swiftlet.data.encode import EncodedChunk
from swiftlet.data.report import MOST_UNUSED, DataReport
from swiftlet.data.store import FILES, ROWS, SEAL, TOKENS
from swiftlet.errors import UsageError
from swiftlet.files import NO_LOCKS, hold, let_go, sha256, sync, write_whole

JOURNAL = "journal.json"
SAVE_EVERY_S = 5.0
GLANCE_S = 0.5


class Draft:
    """The growing files of a store.

    Args:
        report: an empty one that knows the datasets; continued from the journal where there is one.
        num_datasets: how many of the datasets are not for validation only.
        marks: of the files that rows are read from. A draft begun with others may hold rows of another content, also
            where the files have got their old one back.
    """

    def __init__(self, folder: Path, report: DataReport, num_datasets: int, marks: list[list[int]]) -> None:
        self.folder = folder
        self.report = report
        self.num_datasets = num_datasets
        self.marks = marks
        self.num_chunks = self.num_rows = self.num_dataset_rows = self.num_tokens = 0
        self.files: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        sizes = self._load()
        self._outputs = {name: _grow(folder / name, sizes.get(name, 0)) for name in (TOKENS, ROWS, BAD_ROWS)}
        self._saved_at = time.monotonic()

    def _load(self) -> dict[str, int]:
        journal = _read_checked(self.folder / JOURNAL)
        if journal is None or journal["marks"] != self.marks or not _are_there(self.folder, journal["sizes"]):
            return {}
        self.report = DataReport.from_dict(journal["report"])
        self.num_chunks, self.num_rows = journal["num_chunks"], journal["num_rows"]
        self.num_dataset_rows, self.num_tokens = journal["num_dataset_rows"], journal["num_tokens"]
        self.files = {name: number for number, name in enumerate(journal["files"])}
        sizes: dict[str, int] = journal["sizes"]
        return sizes

    def append(self, chunk: EncodedChunk) -> None:
        """Write a chunk behind the others and count its rows."""
        rows = chunk.rows
        rows["offset"] += self.num_tokens
        numbers = [self.files.setdefault(path, len(self.files)) for path in chunk.files]
        rows["file"] = np.asarray(numbers, "<i4")[rows["file"]]
        self._outputs[TOKENS].write(chunk.tokens.tobytes())
        self._outputs[ROWS].write(rows.tobytes())
        count = self.report.datasets[chunk.dataset]
        count.num_rows += chunk.num_records
        count.notes.update(chunk.notes)
        count.unused = sorted({*count.unused, *chunk.unused})[:MOST_UNUSED]
        self.report.columns = sorted({*self.report.columns, *chunk.columns})
        for row in chunk.left_out:
            self.report.leave_out(chunk.dataset, row)
            if row.is_bad:
                self._outputs[BAD_ROWS].write(row.to_json().encode("utf-8", "backslashreplace"))
        self.num_chunks += 1
        self.num_rows += len(rows)
        self.num_dataset_rows += len(rows) if chunk.dataset < self.num_datasets else 0
        self.num_tokens += len(chunk.tokens)
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Flush the files to the disk and say in the journal that they are good so far."""
        for output in self._outputs.values():
            output.flush()
            os.fsync(output.fileno())
        journal = {
            "marks": self.marks,
            "num_chunks": self.num_chunks,
            "num_rows": self.num_rows,
            "num_dataset_rows": self.num_dataset_rows,
            "num_tokens": self.num_tokens,
            "files": list(self.files),
            "sizes": {name: output.tell() for name, output in self._outputs.items()},
            "report": self.report.to_dict(),
        }
        _write_checked(self.folder / JOURNAL, journal)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Save what is there, with the names of the files, and write no more."""
        self.save()
        write_json(self.folder / FILES, list(self.files))
        for output in self._outputs.values():
            output.close()

    def seal(self, target: Path, content: dict[str, Any]) -> None:
        """Make the closed draft the store `target`, flushed to the disk, with all files and `content` in its seal."""
        paths = list(self.folder.iterdir())
        marks = {path.name: _mark(path) for path in paths}
        _write_checked(self.folder / SEAL, {**content, "files": marks})
        for path in (*paths, self.folder):
            sync(path)
        self.folder.rename(target)
        sync(target.parent)


def read_seal(folder: Path) -> dict[str, Any] | None:
    """Return what the seal of a whole store says; None where there is none, or it or a file is damaged."""
    content = _read_checked(folder / SEAL)
    if content is None or not _are_there(
        folder, {name: size for name, (size, _) in content["files"].items()}
    ):
        return None
    is_whole = all(_mark(folder / name) == mark for name, mark in content["files"].items())
    return content if is_whole else None


def _mark(path: Path) -> list[int | str]:
    """Return the size and hash of a file; the tokens are large, and have hashes of their own, row by row."""
    return [path.stat().st_size, "" if path.name == TOKENS else sha256(path)]


def _are_there(folder: Path, sizes: dict[str, int]) -> bool:
    return all(
        (folder / name).exists() and (folder / name).stat().st_size >= size for name, size in sizes.items()
    )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or absent."""
    write_whole(path, json.dumps(content, ensure_ascii=True), is_synced=True)


def _write_checked(path: Path, content: Any) -> None:
    """Write a JSON file that says its own hash."""
    text = json.dumps(content, ensure_ascii=True)
    write_json(path, {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text})


def _read_checked(path: Path) -> dict[str, Any] | None:
    """Return what `_write_checked` wrote; None where there is nothing, or it is damaged."""
    if not path.exists():
        return None
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        text = outer["content"]
        is_whole = outer["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not is_whole:
        return None
    content: dict[str, Any] = json.loads(text)
    return content


def unwritable(folder: Path, error: OSError) -> UsageError:
    """Return the mistake of a cache that cannot be written."""
    return UsageError(
        f"the cache of tokenised data {folder} cannot be written: {error.strerror}",
        "type SWIFTLET_CACHE=FOLDER before the command, a folder with free space that you may write",
    )


def _grow(path: Path, size: int) -> BinaryIO:
    output = path.open("ab")
    output.truncate(size)
    output.seek(size)
    return output


@contextmanager
def locked(path: Path, on_wait: Callable[[bool], None]) -> Iterator[None]:
    """Hold the lock file `path`; it goes with the block.

    Args:
        on_wait: called every GLANCE_S while another process holds it, with True the first time.

    Raises:
        UsageError: the file cannot be made, or the file system has no locks.
    """

    def wait(is_first: bool) -> None:
        on_wait(is_first)
        time.sleep(GLANCE_S)

    try:
        descriptor = hold(path, on_held=wait)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise UsageError(
                f"the file system of {path.parent}, the cache of tokenised data, has no locks: two runs would write to "
                "one store at a time",
                "type SWIFTLET_CACHE=FOLDER before the command, a folder on a disk of this machine, such as /tmp",
            ) from error
        raise unwritable(path.parent, error) from error
    try:
        yield
    finally:
        let_go(path, descriptor)
