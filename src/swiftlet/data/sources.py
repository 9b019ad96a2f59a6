"""Where rows come from: a name, a hub id, a file or a folder become records one by one, in the order of the source.
Memory does not grow with the number of rows (but for JSON files that are one list).
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import hub, log
from swiftlet.config.filenames import COMPRESSED, SUFFIXES
from swiftlet.data.csvfile import count_csv, read_csv
from swiftlet.data.datasets import DATASETS, NamedDataset, by_id
from swiftlet.data.filekind import read_head, suffix_of
from swiftlet.data.folders import choose_files
from swiftlet.data.formats import row_sha1
from swiftlet.data.jsonfile import count_json, read_json
from swiftlet.data.jsonlines import Keep, count_lines, read_text_lines
from swiftlet.data.parquetfile import count_arrow, count_parquet, read_arrow, read_parquet
from swiftlet.data.rows import BadRow, Origin, Record
from swiftlet.data.spec import DatasetSpec, place_mistake
from swiftlet.errors import DataError

_FIELD = re.compile(r"\{(\w+)\}")


class Reader(NamedTuple):
    """How files of one suffix are read and counted."""

    read: Callable[[Path, Keep | None], Iterator[Record | BadRow]]
    count: Callable[[Path], int]


JSON = Reader(read_json, count_json)
CSV = Reader(read_csv, count_csv)
READERS: dict[str, Reader] = {
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".jsonlines": JSON,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": CSV,
    ".parquet": Reader(read_parquet, count_parquet),
    ".txt": Reader(read_text_lines, count_lines),
    ".arrow": Reader(read_arrow, count_arrow),
}


def files_of(spec: DatasetSpec) -> list[Path]:
    """Return the files that a source is read from, downloading them where they are not cached; none if generated.

    Raises:
        DataError: there are none, or one has a suffix that no reader knows.
        SwiftletError: a hub has no such dataset or cannot be reached.
    """
    named = named_dataset(spec)
    if named is not None and named.generator is not None:
        return []
    if spec.kind == "path":
        path = Path(spec.location)
        mistake = place_mistake(str(path), "--dataset or --val_dataset")
        if mistake is not None:
            raise DataError(*mistake)
        if not path.is_dir():
            return [known_file(path)]
        return choose_files(path, spec.subsets, spec.split)
    subsets = spec.subsets or (named.subsets if named else ())
    return choose_files(hub.dataset_folder(*_hub_ids(spec)), subsets, spec.split)


def count_records(spec: DatasetSpec) -> int:
    """Return the number of rows of the whole source, bad ones among them, in a pass that parses as little as it can.

    Raises:
        DataError: a file cannot be read.
    """
    generated = _generated(spec)
    return (
        sum(1 for _ in generated) if generated is not None else sum(_count(path) for path in files_of(spec))
    )


def read_records(spec: DatasetSpec, *, seed: int = 42) -> Iterator[Record | BadRow]:
    """Yield the rows of a source in its order.

    With `#N` a random sample of N rows of the whole source is drawn by the seed, bad rows among them; it comes in the
    order of the source, and where the source is smaller all of it is taken and the log says so.

    Raises:
        DataError: a file cannot be read, or has no rows.
    """
    named = named_dataset(spec)
    for row in _chosen_rows(spec, seed):
        yield shape(row, named.fields) if named is not None and isinstance(row, Record) else row


def named_dataset(spec: DatasetSpec) -> NamedDataset | None:
    """Return the table's row for a source, also where it was asked for by its hub id."""
    if spec.kind == "named":
        return DATASETS[spec.location]
    return None if spec.kind == "path" else by_id(spec.location)


def shape(record: Record, fields: Mapping[str, str]) -> Record | BadRow:
    """Return the record with the columns made by the patterns of a named dataset.

    A pattern that is one column alone hands over its value as it is.
    """
    row = dict(record.row)
    for ours, pattern in fields.items():
        names = _FIELD.findall(pattern)
        lacking = [name for name in names if record.row.get(name) is None]
        if lacking:
            detail = f"column {lacking[0]} is missing or null"
            return BadRow(record.origin, "schema", detail, row_sha1(record.row))
        if pattern == f"{{{names[0]}}}":
            row[ours] = record.row[names[0]]
        else:
            row[ours] = _FIELD.sub(lambda found: str(record.row[found.group(1)]), pattern)
    return Record({ours: row[ours] for ours in fields}, record.origin) if fields else record


def _chosen_rows(spec: DatasetSpec, seed: int) -> Iterator[Record | BadRow]:
    generated = _generated(spec)
    files = [] if generated is not None else files_of(spec)
    if spec.num_samples is None:
        yield from generated if generated is not None else _all_rows(files)
        return
    counts = [count_records(spec)] if generated is not None else [_count(path) for path in files]
    is_drawn = draw(sum(counts), spec, seed)
    if generated is not None:
        yield from (row for index, row in enumerate(generated) if is_drawn[index])
        return
    first = 0
    for path, count in zip(files, counts, strict=True):
        mask = is_drawn[first : first + count]
        if any(mask):
            yield from READERS[suffix_of(path)].read(path, mask.__getitem__)
        first += count


def draw(num_rows: int, spec: DatasetSpec, seed: int) -> bytearray:
    """Return a byte a row, 1 where the row belongs to the sample of `#N`."""
    wanted = spec.num_samples or 0
    if wanted >= num_rows:
        if wanted > num_rows:
            log.warning(f"{spec.text}: asked for {wanted} rows, there are {num_rows}: all are taken")
        return bytearray(b"\1") * num_rows
    mask = bytearray(num_rows)
    for index in random.Random(seed).sample(range(num_rows), wanted):
        mask[index] = 1
    return mask


def _all_rows(files: list[Path]) -> Iterator[Record | BadRow]:
    for path in files:
        read_head(path)
        is_empty = True
        for row in READERS[suffix_of(path)].read(path, None):
            is_empty = False
            yield row
        if is_empty:
            raise _no_rows(path)


def _count(path: Path) -> int:
    read_head(path)
    count = READERS[suffix_of(path)].count(path)
    if not count:
        raise _no_rows(path)
    return count


def _no_rows(path: Path) -> DataError:
    where = " after the header" if suffix_of(path) in (".csv", ".tsv") else ""
    return DataError(f"{path}: no rows{where}", "give a file that holds rows")


def known_file(path: Path) -> Path:
    """Return a file whose suffix and first bytes say that rows can be read from it.

    Raises:
        DataError: they do not.
    """
    read_head(path)  # first: no suffix would make an archive readable
    if suffix_of(path) not in READERS:
        raise DataError(
            f"{path}: unknown suffix {path.suffix!r}",
            f"rename it after what it holds: {', '.join(SUFFIXES)}; text also with {' or '.join(COMPRESSED)} behind it",
        )
    return path


def is_here(spec: DatasetSpec) -> bool:
    """Return whether the rows of a source can be read without fetching anything."""
    wanted = on_hub(spec)
    return wanted is None or hub.cached_folder("dataset", wanted.ms_id, wanted.hf_id) is not None


def on_hub(spec: DatasetSpec) -> hub.Wanted | None:
    """Return what a source needs of a hub, None for one that needs none."""
    named = named_dataset(spec)
    if spec.kind == "path" or (named is not None and named.generator is not None):
        return None
    return hub.Wanted("dataset", *_hub_ids(spec))


def _hub_ids(spec: DatasetSpec) -> tuple[str | None, str | None]:
    """Return the ids of a source on ModelScope and on Hugging Face."""
    if spec.kind == "named":
        return DATASETS[spec.location].ms_id, DATASETS[spec.location].hf_id
    ms_id = spec.location if spec.kind in ("ms", "hub") else None
    return ms_id, spec.location if spec.kind in ("hf", "hub") else None


def _generated(spec: DatasetSpec) -> Iterator[Record] | None:
    """Return the rows of a dataset that is made by a module of ours, None for any other."""
    named = named_dataset(spec)
    if named is None or named.generator is None:
        return None
    rows: Iterator[dict[str, Any]] = importlib.import_module(f"swiftlet.data.{named.generator}").rows(
        *spec.subsets
    )
    return (Record(row, Origin(spec.location, number)) for number, row in enumerate(rows, 1))
