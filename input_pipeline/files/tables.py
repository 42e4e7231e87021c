"""CSV, TSV, parquet and Arrow IPC files: text columns held as Arrow tables, or all of a file in
parts, one after the other."""

import functools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from input_pipeline.files import delimited, listing
from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.files.outages import Unreachable
from input_pipeline.files.ranges import disk_path, open_file

_SUFFIXES = (*delimited.DELIMITERS, ".parquet", ".arrow")

_LOCK = threading.Lock()
_BUFFER_BYTES = 2**20  # of each column that is read in parts


def find(path: str | os.PathLike) -> list[Path]:
    """The tables that a path or pattern means, in the order of their names, see `listing.find`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: one is of another kind, or two have the same name.
    """
    found = listing.find(path)
    if not found:
        raise FileNotFoundError(f"Table {path} does not exist (a pattern knows *, ? and [0-9]).")
    for file in found:
        if file.suffix not in _SUFFIXES:
            raise ValueError(
                f"{file} is no table; known are {', '.join(_SUFFIXES)}, all uncompressed."
            )
    return found


def check_columns(file: Path, needed: Sequence[str]) -> None:
    """Raises ValueError if the table lacks a column, has it twice, or cannot be read; reads the
    header only."""
    available = _column_names(file)
    for name in needed:
        if name not in available:
            hint = ""
            if file.suffix in delimited.DELIMITERS:
                hint = " (its first line; if that is no line of names, put one before it)"
            found = ", ".join(column[:80] for column in available)
            raise ValueError(f"{file} has no column {name!r}; it has {found}{hint}.")
        if available.count(name) > 1:
            raise ValueError(
                f"{file} has {available.count(name)} columns {name!r}; rename all but one."
            )


def _column_names(file: Path) -> list[str]:
    try:
        if file.suffix in delimited.DELIMITERS:
            return delimited.column_names(file)
        if file.suffix == ".parquet":
            return pa.parquet.read_schema(file).names
        return _open_arrow(file).schema.names
    except ValueError as error:  # Arrow's is one, too
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read: {str(error).rstrip('.')}.")


def load_all(tables: Sequence[Path], columns: Sequence[str]) -> list[pa.Table]:
    """`load` of each file; kept, and shared by all who ask for the same in this process."""
    identities = []
    for file in tables:
        status = file.stat()
        identities.append((str(file), status.st_size, status.st_mtime_ns))
    with _LOCK:  # two threads would load twice
        return _load_all(tuple(identities), tuple(columns))


@functools.lru_cache(maxsize=4)
def _load_all(tables: tuple[tuple[str, int, int], ...], columns: tuple[str, ...]) -> list[pa.Table]:
    return [load(Path(name), columns) for name, _, _ in tables]


def load(file: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a table: in memory, or, of an .arrow file, mapped.

    Raises:
      ValueError: the file is damaged, or a column holds neither strings nor lists of strings.
    """
    try:
        if file.suffix in delimited.DELIMITERS:
            table = delimited.load(file, columns)
        elif file.suffix == ".parquet":
            table = pa.parquet.read_table(file, columns=list(columns))
        else:
            # Asking the reader for some columns only would copy them into memory.
            table = _open_arrow(file).read_all().select(columns)
    except ValueError as error:
        raise _unreadable(file, error) from None
    for name in columns:
        _check_type(file, name, table[name].type)
    return table


def stream(
    file: Path, rows: int, columns: Sequence[str] | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """All of a table, of any types, at most `rows` rows at a time: memory does not depend on its
    length. Fields of a .csv or .tsv are large strings. Parquet may lie in a bucket.

    Args:
      columns: only these; by default all.

    Returns:
      The schema, and the parts in their order; reading them raises ValueError or OSError, too.

    Raises:
      ValueError: the file is damaged; OSError: it cannot be read.
    """
    try:
        if file.suffix == ".parquet":
            opened = pa.parquet.ParquetFile(
                open_file(file) if is_in_bucket(file) else file,
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,  # of a whole group of rows, which may be all
            )
            schema = opened.schema_arrow
            batches = opened.iter_batches(rows, columns=columns, use_threads=False)
        else:
            disk_path(file, "tables but parquet are read")
            if file.suffix in delimited.DELIMITERS:
                reader = delimited.open_rows(file)
            else:
                reader = _open_arrow(file)
            schema, batches = reader.schema, _batches(reader)
    except ValueError as error:
        raise _unreadable(file, error) from None
    return schema, _parts(file, batches, rows, columns)


def _parts(file, batches, rows: int, columns) -> Iterator[pa.RecordBatch]:
    try:
        for batch in batches:
            chosen = batch if columns is None else batch.select(columns)
            for first in range(0, chosen.num_rows, rows):
                yield chosen.slice(first, rows)
    except Unreachable:
        raise
    except (ValueError, OSError) as error:  # a damaged page is either
        raise _unreadable(file, error) from None


def _batches(reader) -> Iterator[pa.RecordBatch]:
    """Of a reader of an Arrow file, which has them by number, or of a stream."""
    if hasattr(reader, "get_batch"):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


def check_rows(file: Path, key: str) -> None:
    """Raises ValueError where a field of a .csv holds further rows, see `delimited.check_rows`;
    `key` is the column that names the images, or their URLs."""
    if file.suffix in delimited.DELIMITERS:
        try:
            delimited.check_rows(file, key)
        except ValueError as error:
            raise _unreadable(file, error) from None


def check_text(file: Path, table: pa.Table) -> None:
    """Raises ValueError where text is no UTF-8, and names the row; reads all of the table."""
    for name in table.column_names:
        first = 0
        for chunk in table[name].chunks:
            try:
                chunk.validate(full=True)
            except pa.ArrowInvalid as error:
                row, reason = _first_invalid(chunk, error)
                where = f"row {first + row} (counted from 0, as in ids), column {name!r}"
                raise _unreadable(file, ValueError(f"{where}: {reason}")) from None
            first += len(chunk)


def _first_invalid(chunk: pa.Array, error: ValueError) -> tuple[int, ValueError]:
    for row in range(len(chunk)):
        try:
            chunk[row].as_py()
        except UnicodeDecodeError as reason:
            return row, reason
    return 0, error


def _open_arrow(file: Path):
    """Reader of either form of Arrow IPC: a file, or a stream, as Hugging Face datasets has it."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(file)))
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.memory_map(str(file)))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _check_type(file: Path, name: str, kind: pa.DataType) -> None:
    if not _is_text(kind) and not (_is_list(kind) and _is_text(kind.value_type)):
        raise ValueError(
            f"{file}, column {name!r}: {kind} where strings or lists of strings are expected."
        )


def strings(table: pa.Table, name: str) -> Iterator[str | None]:
    """The values of a column, one by one.

    Raises:
      ValueError: it holds lists.
    """
    if _is_list(table[name].type):
        raise ValueError(f"Column {name!r} holds lists where one string a row is expected.")
    for chunk in table[name].chunks:
        yield from chunk.to_pylist()


def have_text(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """bool[rows]: at least one of the columns holds more than full stops and spaces."""
    found = np.zeros(table.num_rows, bool)
    for name in columns:
        first = 0
        for chunk in table[name].chunks:
            part = found[first : first + len(chunk)]
            if _is_list(chunk.type):
                parents = pc.list_parent_indices(chunk).to_numpy(zero_copy_only=False)
                part[parents[_is_written(pc.list_flatten(chunk))]] = True
            else:
                part |= _is_written(chunk)
            first += len(chunk)
        if found.all():
            break
    return found


def _is_written(strings: pa.Array) -> np.ndarray:
    written = pc.match_substring_regex(strings.cast(pa.large_string()), r"[^\s.]")
    return pc.fill_null(written, False).to_numpy(zero_copy_only=False)
