"""Lists of records that a data set is to be made without: parquet, a row per record.

A record is known by the name of its data set, its id and the digest of its image, or of one of
several: a list may be of several data sets whose ids are the same. Other columns say why.
"""

import contextlib
import functools
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from etils import epath

from input_pipeline.duplicates import signatures
from input_pipeline.files import listing
from input_pipeline.files.buckets import is_in_bucket, make_directory
from input_pipeline.files.ranges import open_file, source_path
from input_pipeline.files.whole import write_whole
from input_pipeline.prepare.filters import Tally
from input_pipeline.prepare.shards import DROPPED_SUFFIX
from input_pipeline.records import images_of

REASONS = EXACT, NEAR, CONTAMINATED = "exact duplicate", "near duplicate", "contaminated"
# Strings with room for more than 2 GB in a column.
SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("digest", pa.binary(signatures.DIGEST_BYTES)),
        ("data", pa.large_string()),
        ("reason", pa.large_string()),
        ("match", pa.large_string()),
        ("match_data", pa.large_string()),
        ("distance", pa.uint8()),
    ]
)
DATA = "data"  # key of the schema's metadata: JSON list of the data sets that were searched
_NEEDED = ("id", "digest", "data", "reason")

Samples = Iterable[tuple[str, dict[str, Any]]]


def choose(path: Path | epath.Path, data: str | None) -> str:
    """The name of a data set that a list is of: the one that is given, or else the only one.

    Raises:
      ValueError: the file is no such list, or the choice is left open or not there.
      FileNotFoundError
    """
    with open_file(path) as file:
        try:
            schema = pa.parquet.read_schema(file)
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    for name in _NEEDED:
        wanted = SCHEMA.field(name).type
        kinds = (wanted, pa.string()) if wanted == pa.large_string() else (wanted,)
        if name not in schema.names or schema.field(name).type not in kinds:
            raise ValueError(
                f"{path} is no list of records to drop: it has no column {name!r} of type "
                f"{kinds[-1]}, as `python -m input_pipeline.duplicates find` writes."
            )
    if (said := (schema.metadata or {}).get(DATA.encode())) is not None:
        names = json.loads(said)
    else:  # another program has written it
        with open_file(path) as file:
            names = pa.parquet.read_table(file, columns=[DATA])[DATA].unique().to_pylist()
    if data is None and len(names) < 2:
        return names[0] if names else ""
    if data not in names:
        what = "is of several data sets" if data is None else f"is not of {data!r}"
        raise ValueError(
            f"{path} {what}: say with --drop-data which one this is: {', '.join(sorted(names))}."
        )
    return data


def fingerprint(path: Path | epath.Path, data: str) -> str:
    """16 hex digits of a list's contents and of the data set's name."""
    return listing.fingerprint(listing.contents_digest(path), data)


@contextlib.contextmanager
def sorted_for(
    path: Path | epath.Path, data: str, output: Path | epath.Path
) -> Iterator[Path | epath.Path]:
    """Puts the records of one data set of a list into a hidden file of `output`, where all workers
    find it, sorted, so that they need not read it; it is removed at the end."""
    with open_file(path) as file:
        table = pa.parquet.read_table(
            file, columns=list(_NEEDED), filters=pa.compute.field(DATA) == data
        )
    id_, digest, reason = (
        table[name].cast(SCHEMA.field(name).type) for name in ("id", "digest", "reason")
    )
    first = pa.array(bytes_of(digest).view("<u8")[:, 0])
    columns = {"first": first, "id": id_, "digest": digest, "reason": reason.dictionary_encode()}
    table = pa.table(columns).sort_by("first").combine_chunks()
    written = io.BytesIO()
    with pa.ipc.new_file(written, table.schema) as writer:
        writer.write_table(table.unify_dictionaries())
    make_directory(output)
    # Its own name: another command with this output may begin, or end, meanwhile.
    place = output / f".{uuid.uuid4().hex}{DROPPED_SUFFIX}"
    write_whole(place, written.getvalue())
    try:
        yield place
    finally:
        place.unlink(missing_ok=True)


class Dropped:
    """The records of a file that `sorted_for` made, which stay on the disk."""

    def __init__(self, path: Path | epath.Path):
        if is_in_bucket(path):
            with open_file(path) as file:
                contents = pa.py_buffer(file.read())
        else:
            contents = pa.memory_map(os.fspath(path))
        self._table = pa.ipc.open_file(contents).read_all()
        self._first = self._table["first"].to_numpy()

    def reason(self, record: dict[str, Any]) -> str | None:
        """Why a record is on the list, by one of its images; None if it is not."""
        images = (image for image in images_of(record) if isinstance(image, bytes))
        return next(filter(None, (self._reason(record["id"], image) for image in images)), None)

    def _reason(self, record_id: str, image: bytes) -> str | None:
        digest = signatures.digest(image)
        first = np.uint64(int.from_bytes(digest[:8], "little"))
        place = int(np.searchsorted(self._first, first))
        while place < len(self._first) and self._first[place] == first:
            id_, found, reason = (self._table[name][place] for name in ("id", "digest", "reason"))
            if (id_.as_py(), found.as_py()) == (record_id, digest):
                return reason.as_py()
            place += 1
        return None


def bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """u8[n, width] of a column of binary strings of one width."""
    width = column.type.byte_width
    chunk = column.combine_chunks()
    found = np.frombuffer(chunk.buffers()[1] or b"", np.uint8).reshape(-1, width)
    return found[chunk.offset : chunk.offset + len(chunk)]


@functools.lru_cache(maxsize=2)
def _opened(path: str) -> Dropped:
    return Dropped(source_path(path))


def without(
    read: Callable[[Tally], Samples], path: str, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples that `read(tally)` yields but for those on a list, which are counted in `tally`.

    Args:
      path: what `sorted_for` made of the list.
    """
    listed = _opened(path)
    for key, record in read(tally):
        reason = listed.reason(record)
        if reason is None:
            yield key, record
        else:
            tally.drop(key, reason)
