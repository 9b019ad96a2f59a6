"""Files of logs: plain, gzip or UTF-16; of a huge one its ends, and what looks like an error between them."""

from __future__ import annotations

import codecs
import gzip
import io
import stat
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from swiftlet.doctor.logs import Line, lines_from, rank_of
from swiftlet.errors import UsageError

LARGEST_BYTES = 16 << 20  # of a file: the first and the last half of it; the first error and the last words
LARGEST_MIDDLE = 4 << 20  # of lines between them that look like an error
TROUBLE = ("rror", "ERROR", "xception", "ailed", "imeout", "imed out", "illed")
LONGEST_ROW = 1 << 20
LARGEST_START = 8192  # by which text is told from what is none
GZIP, CONTROL = b"\x1f\x8b", bytes({*range(32)} - {0, 8, 9, 10, 12, 13, 27})
MOST_CONTROL = 0.02  # share of characters that no text has
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
HINT = "name a text file, or a folder of them"


class Log(NamedTuple):
    """All lines of all files; `notes` say what was left out."""

    lines: list[Line]
    notes: list[str]


def read_logs(paths: Sequence[str]) -> Log:
    """Return the lines of files, or of all files below folders.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    log = Log([], [])
    entries: dict[Path, dict[str, set[tuple[int, str]]]] = {}
    for path in _files(paths):
        try:
            rows = _rows(path, log.notes)
        except OSError as error:
            raise UsageError(f"--log {path} cannot be read: {error.strerror or error}", HINT) from None
        log.lines.extend(lines_from(rows, str(path), entries.setdefault(_home(path), {})))
    of_source = {
        source: entries.get(_home(Path(source)), {}) for source in {line.source for line in log.lines}
    }
    for line in log.lines:
        groups = of_source[line.source].get(line.process or "")
        if line.rank is None and groups:
            line.rank = rank_of(groups)
    return log


def _home(path: Path) -> Path:
    """Return the folder of one machine's plogs: what informs lies beside the errors, of another one's processes not."""
    parts = path.parts
    pairs = zip(parts, parts[1:], strict=False)
    named = (at for at, pair in enumerate(pairs) if pair in (("debug", "plog"), ("run", "plog")))
    at = next(named, None)
    return path if at is None else Path(*parts[:at])


def process_logs(environ: Mapping[str, str], pid: int) -> list[Path]:
    """Return the logs that the device's software wrote for a process on the host (plog), where it does."""
    named = environ.get("ASCEND_PROCESS_LOG_PATH") or str(Path(environ.get("HOME", "/root")) / "ascend/log")
    return sorted(Path(named).glob(f"**/plog/plog-{pid}_*.log")) if Path(named).is_dir() else []


def _files(paths: Sequence[str]) -> Iterable[Path]:
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise UsageError(f"--log {name}: there is no such file", HINT)
        # A pipe that the shell made ends; a named one without a writer never does.
        if stat.S_ISFIFO(path.stat().st_mode) and not name.startswith("/dev/"):
            raise UsageError(
                f"--log {name} is a named pipe", f"write it into a file first: cat {name} > FILE"
            )
        yield from sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def _rows(path: Path, notes: list[str]) -> list[tuple[int, str]]:
    """Return the numbered rows of a file; none, and a note, where it is no text."""
    with path.open("rb") as file:
        if not file.peek(len(GZIP)).startswith(GZIP):
            return _text_rows(path, file, notes)
        with gzip.open(file) as unpacked:
            return _text_rows(path, io.BufferedReader(unpacked), notes)


def _text_rows(path: Path, file: io.BufferedReader, notes: list[str]) -> list[tuple[int, str]]:
    try:
        start = file.peek(LARGEST_START)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        start = b""
    encoding = next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), "utf-8")
    plain = start.replace(b"\0", b"")  # a crash leaves blocks of them
    if encoding != "utf-16" and len(plain) - len(plain.translate(None, CONTROL)) > MOST_CONTROL * len(plain):
        notes.append(f"{path} is no text file and was left out")
        return []
    with io.TextIOWrapper(file, encoding, "replace", newline="\n") as text:
        return _ends(path, _numbered(path, text, notes), notes)


def _numbered(path: Path, text: IO[str], notes: list[str]) -> Iterator[tuple[int, str]]:
    number = 1
    try:
        while row := text.readline(LONGEST_ROW):
            yield number, row.rstrip("\n")
            number += row.endswith("\n")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        notes.append(f"{path}: the gzip file is cut off or damaged; what stands before that was read")


def _ends(path: Path, rows: Iterable[tuple[int, str]], notes: list[str]) -> list[tuple[int, str]]:
    """Return the rows at both ends, and those between them that look like an error."""
    kept: list[tuple[int, str]] = []
    tail: deque[tuple[int, str]] = deque()
    head_size = tail_size = middle_size = passed = 0
    for number, row in rows:
        if head_size < LARGEST_BYTES // 2:
            kept.append((number, row))
            head_size += len(row) + 1
            continue
        tail.append((number, row))
        tail_size += len(row) + 1
        while tail_size > LARGEST_BYTES // 2:
            old = tail.popleft()
            tail_size -= len(old[1]) + 1
            passed += len(old[1]) + 1
            if middle_size < LARGEST_MIDDLE and any(word in old[1] for word in TROUBLE):
                kept.append(old)
                middle_size += len(old[1]) + 1
    if passed:
        size = (head_size + passed + tail_size) >> 20
        notes.append(
            f"{path}: of {size} MB the first and last {LARGEST_BYTES >> 21} MB were read, "
            "and between them only lines that look like an error"
        )
    return [*kept, *tail]
