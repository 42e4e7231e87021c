"""Captions that are there too often, counted exactly over all tables: by hashes of 64 bits.

Each table gives a file of hashes in sorted runs. A range of hash values is then counted over all of
them, as many at a time as fit into memory. Neither depends on how long a table or the corpus is.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath
from rich.console import Console

from input_pipeline.corpus import captions, columns, jobs
from input_pipeline.corpus.columns import Rows
from input_pipeline.corpus.jobs import Job, Run
from input_pipeline.corpus.sift import ROWS
from input_pipeline.files import listing, tables, whole
from input_pipeline.files.buckets import make_directory
from input_pipeline.files.copies import local_copy
from input_pipeline.files.ranges import source_path

_RUN = 2**18  # hashes that are sorted
_PART = 2**22  # hashes that are counted at once, about
_HASH = np.dtype("<u8")


@dataclass(frozen=True)
class _Part:
    """A range of hash values; `size` is that of its hashes, MB."""

    number: int
    size: float


def find_frequent(
    tables_: Sequence[Job],
    output: Path | epath.Path,
    given: Mapping[str, Sequence[str]],
    most: int,
    run: Run,
    console: Console,
) -> tuple[tuple[Path | epath.Path, ...], str]:
    """Files of the ascending hashes of all captions that more than `most` rows have, see `load`;
    and what their contents are told by.

    Raises:
      ValueError: as `jobs.compute`.
    """
    make_directory(output)
    tasks = [(job, job.work_file(output, "hashes", given), (job.table, given)) for job in tables_]
    jobs.compute(write_hashes, tasks, run, console, "Reading captions, to count their copies")
    files = tuple(path for _, path, _ in tasks)
    total = int(listing.status(files)[:, 0].sum()) // _HASH.itemsize
    parts = max(1, -(-total // _PART))
    size = total * _HASH.itemsize / parts / 1e6
    tasks = []
    for number in range(parts):
        low, high = (2**64 * n // parts for n in (number, number + 1))
        decides = [path.name for path in files], most, low, high
        path = jobs.work_file(output, "copies", *decides)
        tasks.append((_Part(number, size), path, (files, low, high, most)))
    jobs.compute(count, tasks, run, console, "Counting the copies")
    found = tuple(path for _, path, _ in tasks)
    return found, listing.fingerprint(*(path.read_bytes() for path in found))


@functools.lru_cache(maxsize=1)
def load(files: Sequence[Path | epath.Path]) -> np.ndarray:
    """u64[n], ascending, of the files of `find_frequent`; kept in this process."""
    data = b"".join(source_path(path).read_bytes() for path in files)
    return np.frombuffer(data, _HASH)


def write_hashes(path: Path, table: Path, given: Mapping[str, Sequence[str]]) -> str:
    """Writes the hashes of a table's captions, in runs of `_RUN` that are sorted."""
    path, table = source_path(path), source_path(table)
    try:
        schema, _ = tables.stream(table, ROWS)
        found = {"caption": columns.find("caption", schema.names, given)}
        _, batches = tables.stream(table, ROWS, found["caption"])
        with jobs.temporary(path.parent, path.name) as temporary:
            with open(temporary, "wb") as file:
                waiting, count = [], 0
                for batch in batches:
                    values = captions.hashes(Rows(batch, found, 0).text("caption"))
                    waiting.append(values[values != 0])  # 0: there is no caption
                    count += len(waiting[-1])
                    if count >= _RUN:
                        values = np.concatenate(waiting)
                        file.write(np.sort(values[:_RUN]).tobytes())
                        waiting, count = [values[_RUN:]], count - _RUN
                file.write(np.sort(np.concatenate([np.zeros(0, _HASH), *waiting])).tobytes())
            whole.place(temporary, path)
        return ""
    except (OSError, ValueError) as error:
        return jobs.reason(table, error)


def count(path: Path, files: Sequence[Path], low: int, high: int, most: int) -> str:
    """Writes the hashes in [low, high) that are more than `most` times in the files."""
    path = source_path(path)
    try:
        parts = [np.zeros(0, _HASH)]
        for file in files:
            data = np.frombuffer(b"", _HASH)
            copy = local_copy(source_path(file))
            if copy.stat().st_size:
                data = np.memmap(copy, _HASH, "r")
            for start in range(0, len(data), _RUN):
                run = data[start : start + _RUN]
                first = np.searchsorted(run, np.uint64(low))
                end = np.searchsorted(run, np.uint64(high - 1), "right")
                parts.append(np.array(run[first:end]))
        values, counts = np.unique(np.concatenate(parts), return_counts=True)
        whole.write_whole(path, values[counts > most].tobytes())
        return ""
    except (OSError, ValueError) as error:
        return jobs.reason(path, error)
