"""The name of a token store: a hash of everything that its content follows from. No torch.

Files count by their content. Up to `ALWAYS_READ_BYTES` they are read each time; larger ones (2 GB take a second) are
read once, and again when size, times or inode differ. A file changed less than `SETTLED_S` before it was read could
change again within one tick of the file system's clock, so it is not remembered.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from swiftlet.config.args import DataArgs
from swiftlet.data.draft import write_json
from swiftlet.data.sources import files_of
from swiftlet.data.spec import parse_specs
from swiftlet.files import code_hash, sha256

ALWAYS_READ_BYTES = 64 * 2**20
SETTLED_S = 5.0
MEMORY, ENTRY = "files.json", {"mark", "sha256"}


def hash_files(paths: Iterable[Path], cache_dir: Path | None = None) -> dict[str, str]:
    """Return the sha256 of each file, from the memory in `cache_dir` where a large one is surely unchanged."""
    memory = _load(cache_dir / MEMORY) if cache_dir else {}
    hashes, news = {}, {}
    for path in paths:
        name, mark = str(path.resolve()), mark_of(path)
        size, modified_ns, changed_ns, _ = mark
        known = memory.get(name)
        if size > ALWAYS_READ_BYTES and known and known["mark"] == mark:
            hashes[str(path)] = str(known["sha256"])
            continue
        started_ns = time.time_ns()
        hashes[str(path)] = sha256(path)
        is_settled = started_ns - max(modified_ns, changed_ns) > SETTLED_S * 1e9
        if size > ALWAYS_READ_BYTES and is_settled:
            news[name] = {"mark": mark, "sha256": hashes[str(path)]}
    if news and cache_dir:
        with suppress(OSError):  # of a cache that is full or only to be read: the files are read again
            write_json(cache_dir / MEMORY, {**memory, **news})
    return hashes


def mark_of(path: str | Path) -> list[int]:
    """Return what differs when a file was written, replaced or moved: its size, its times and its inode."""
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def rows_hash(args: DataArgs, hashes: Mapping[str, str] | None = None) -> str:
    """Return a hash of the files that rows are held out of: in others the same draw finds other rows.

    It is empty where the rows for validation are not drawn.

    Args:
        hashes: of these files, in their order, where they are known already.
    """
    if args.val_dataset or args.dataset_test_ratio == 0:
        return ""
    if hashes is None:
        hashes = hash_files(
            dict.fromkeys(path for spec in parse_specs(args.dataset) for path in files_of(spec))
        )
    return hashlib.sha256(" ".join(hashes.values()).encode()).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    """Return what is remembered of files; what is damaged is forgotten, and the files are read again."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict) and entry.keys() == ENTRY}


def store_key(**parts: Any) -> str:
    """Return the name of the store that follows from `parts`, JSON values, this room's code, and the libraries that
    make tokens.
    """
    code = [code_hash(Path(__file__).parent), *map(metadata.version, ("tokenizers", "jinja2", "numpy"))]
    text = json.dumps({**parts, "code": code}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
