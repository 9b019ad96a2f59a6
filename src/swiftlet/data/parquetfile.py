"""Tables of Arrow (parquet, and arrow as `save_to_disk` writes it): rows in small batches; a null field inside a struct
is an absent field, as it was before Arrow merged the rows into one schema. Values of Arrow's type for JSON, which
`datasets` writes where rows have unlike fields, become what their text says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet.data.filekind import ENCRYPTED
from swiftlet.data.formats import row_sha1
from swiftlet.data.jsonlines import Keep
from swiftlet.data.reasons import RowFault
from swiftlet.data.rows import BadRow, Origin, Record
from swiftlet.data.toolcalls import parsed
from swiftlet.errors import DataError, describe

ROWS_PER_BATCH = 256


def read_parquet(path: Path, keep: Keep | None = None) -> Iterator[Record | BadRow]:
    """Yield the rows of a Parquet file in order.

    Raises:
        DataError: the file is damaged.
    """
    yield from _rows(path, _parquet_batches(path), keep)


def count_parquet(path: Path) -> int:
    """Return the number of rows, from the file's footer.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def read_arrow(path: Path, keep: Keep | None = None) -> Iterator[Record | BadRow]:
    """Yield the rows of an Arrow file or stream in order.

    Raises:
        DataError: the file is damaged.
    """
    yield from _rows(path, _arrow_batches(path), keep)


def count_arrow(path: Path) -> int:
    """Return the number of rows.

    Raises:
        DataError: the file is damaged.
    """
    return sum(batch.num_rows for batch in _arrow_batches(path))


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS_PER_BATCH)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.OSFile(str(path)) as file:
            if file.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(file)
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                file.seek(0)
                yield from pyarrow.ipc.open_stream(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _rows(path: Path, batches: Iterator[Any], keep: Keep | None) -> Iterator[Record | BadRow]:
    name, first = str(path), 0
    for batch in batches:
        _check_names(path, batch.schema.names)
        wanted = [index for index in range(batch.num_rows) if keep is None or keep(first + index)]
        of_json = {field.name: field.type for field in batch.schema if _holds_json(field.type)}
        rows = _values(batch if len(wanted) == batch.num_rows else batch.take(wanted)) if wanted else []
        for index, row in zip(wanted, rows, strict=True):
            origin = Origin(name, first + index + 1)
            broken = next((value for value in row.values() if isinstance(value, _Broken)), None)
            if broken is None:
                yield _record({key: _without_nulls(value) for key, value in row.items()}, of_json, origin)
            else:
                yield BadRow(origin, broken.reason, broken.detail, row_sha1(row))
        first += batch.num_rows


def _record(row: dict[str, Any], of_json: Mapping[str, Any], origin: Origin) -> Record | BadRow:
    """Return the row with the values of its columns that hold JSON."""
    try:
        read = {name: _read_json(row[name], kind, f"column {name}") for name, kind in of_json.items()}
    except RowFault as fault:
        return BadRow(origin, fault.reason, fault.detail, row_sha1(row))
    return Record(row | read, origin)


def _holds_json(kind: Any) -> bool:
    """Return whether a type is Arrow's for JSON, or has it inside."""
    is_json = getattr(kind, "extension_name", "") == "arrow.json"
    return is_json or any(_holds_json(kind.field(index).type) for index in range(kind.num_fields))


def _read_json(value: Any, kind: Any, what: str) -> Any:
    import pyarrow

    if value is None or not _holds_json(kind):
        return value
    if pyarrow.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return {name: _read_json(item, fields[name], what) for name, item in value.items()}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_read_json(item, kind.value_type, what) for item in value]
    return parsed(value, what)


class _Broken(NamedTuple):
    """Stands for a value that Python cannot hold."""

    reason: str
    detail: str


def _values(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a batch; where Python cannot hold them all, value by value."""
    import pyarrow

    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError):  # no UTF-8 is a ValueError, too
        names = batch.schema.names
        columns = [_column(name, column) for name, column in zip(names, batch.columns, strict=True)]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows


def _column(name: str, column: Any) -> list[Any]:
    import pyarrow

    if pyarrow.types.is_temporal(
        column.type
    ):  # a time beyond Python's or of an unknown zone is still a number
        return column.view(f"int{column.type.bit_width}").to_pylist()
    return [_value(name, scalar) for scalar in column]


def _value(name: str, scalar: Any) -> Any:
    import pyarrow

    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        at = f"byte 0x{error.object[error.start]:02x} at byte {error.start}"
        return _Broken("utf8", f"column {describe(name, 40)}: {at} of the text is not UTF-8")
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        return _Broken("schema", f"column {describe(name, 40)}: a value that cannot be read ({error})")


def _check_names(path: Path, names: list[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise DataError(f"{path}: column {describe(repeated[0])} stands twice", "rename one of them")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _unreadable(path: Path, error: Exception) -> DataError:
    if "decrypt" in str(error):  # its columns may be encrypted, and what describes them not
        return DataError(f"{path}: {ENCRYPTED.what}", ENCRYPTED.hint)
    return DataError(f"{path}: a damaged table (Arrow cannot read it)", "fetch or write it again")
