"""Files of logs: plain, gzip or UTF-16; of a huge one its ends, and what looks like an error between them."""

from __future__ import annotations

import codecs
import gzip
import io
import stat
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from swiftlet.doctor.logs import Line, lines_from, rank_of, shape_of
from swiftlet.errors import UsageError

LARGEST_BYTES = 4 << 20  # of a file: the first and the last half of it; the first error and the last words
LARGEST_MIDDLE = 1 << 20  # of lines between them that look like an error
MIDDLE_REPEATS = 20  # of those that differ in figures only, so that one that comes always crowds out no other
ROW_BYTES = 64  # that a row counts besides its text: many short ones take as long as fewer long ones
TROUBLE = "rror ERROR xception ailed imeout illed annot nvalid efused enied lost".split()
TROUBLE += ["imed out", "undefined symbol", "out of memory", "o space left", "o such"]
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
    seen: Counter[str] = Counter()
    head = head_size = tail_size = middle_size = passed = 0
    for number, row in rows:
        if head_size < LARGEST_BYTES // 2:
            kept.append((number, row))
            head += 1
            head_size += len(row) + ROW_BYTES
            continue
        tail.append((number, row))
        tail_size += len(row) + ROW_BYTES
        while tail_size > LARGEST_BYTES // 2:
            old = tail.popleft()
            tail_size -= len(old[1]) + ROW_BYTES
            passed += 1
            if middle_size < LARGEST_MIDDLE and _is_new_trouble(old[1], seen):
                kept.append(old)
                middle_size += len(old[1]) + ROW_BYTES
    if passed:
        notes.append(
            f"{path}: of {head + passed + len(tail)} lines the first {head} and the last {len(tail)} were read, "
            "and between them only those that look like an error"
        )
    return [*kept, *tail]


def _is_new_trouble(row: str, seen: Counter[str]) -> bool:
    """Return whether a row looks like an error, and not many like it were there before."""
    if not any(word in row for word in TROUBLE):
        return False
    shape = shape_of(row)
    seen[shape] += 1
    return seen[shape] <= MIDDLE_REPEATS
