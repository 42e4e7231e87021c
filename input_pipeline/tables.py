"""Text columns of CSV, TSV, parquet and Arrow IPC files, held as Arrow tables."""

import functools
import glob
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".parquet", ".arrow")
# A row must fit into one block of a CSV, and fewer blocks make random access faster.
_CSV_BLOCK_BYTES = 64 * 2**20

_LOCK = threading.Lock()


def find(path: str | os.PathLike) -> list[Path]:
    """The tables that a path or pattern means, in the order of their names.

    Raises:
      FileNotFoundError: there is none.
      ValueError: one is of another kind, or two have the same name.
    """
    files = sorted(map(Path, glob.glob(os.path.expanduser(path), recursive=True)))
    if not files:
        raise FileNotFoundError(f"Table {path} does not exist (a pattern knows *, ? and [0-9]).")
    files.sort(key=lambda file: file.name)
    for one, other in itertools.pairwise(files):
        if one.stem == other.stem:
            raise ValueError(f"{one} and {other} would give the same record ids: rename one.")
    for file in files:
        if file.suffix not in _SUFFIXES:
            raise ValueError(f"{file} is no table; known are {', '.join(_SUFFIXES)}.")
    return files


def check_columns(file: Path, needed: Sequence[str]) -> None:
    """Raises ValueError if the table lacks a column, or cannot be read; reads the header only."""
    available = _column_names(file)
    for name in needed:
        if name not in available:
            raise ValueError(f"{file} has no column {name!r}; it has {', '.join(available)}.")


def _column_names(file: Path) -> list[str]:
    try:
        if file.suffix in _DELIMITERS:
            with pa.csv.open_csv(file, parse_options=_parse_options(file)) as reader:
                return reader.schema.names
        if file.suffix == ".parquet":
            return pa.parquet.read_schema(file).names
        return _open_arrow(file).schema.names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None


def load_all(files: Sequence[Path], columns: Sequence[str]) -> list[pa.Table]:
    """`load` of each file; kept, and shared by all who ask for the same in this process."""
    identities = []
    for file in files:
        status = file.stat()
        identities.append((str(file), status.st_size, status.st_mtime_ns))
    with _LOCK:  # two threads would load twice
        return _load_all(tuple(identities), tuple(columns))


@functools.lru_cache(maxsize=4)
def _load_all(files: tuple[tuple[str, int, int], ...], columns: tuple[str, ...]) -> list[pa.Table]:
    return [load(Path(name), columns) for name, _, _ in files]


def load(file: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a table: in memory, or, of an .arrow file, mapped.

    Raises:
      ValueError: the file is damaged, or a column holds neither strings nor lists of strings.
    """
    try:
        if file.suffix in _DELIMITERS:
            table = pa.csv.read_csv(
                file,
                pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
                _parse_options(file),
                # "12", "true" and "null" are captions like any other.
                pa.csv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(columns, pa.large_string()),
                    strings_can_be_null=False,
                ),
            )
        elif file.suffix == ".parquet":
            table = pa.parquet.read_table(file, columns=list(columns))
        else:
            # Asking the reader for some columns only would copy them into memory.
            table = _open_arrow(file).read_all().select(columns)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None
    for name in columns:
        _check_type(file, name, table[name].type)
    return table


def _parse_options(file: Path) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(delimiter=_DELIMITERS[file.suffix], newlines_in_values=True)


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
