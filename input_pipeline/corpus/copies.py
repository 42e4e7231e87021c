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

from input_pipeline.corpus import captions, columns, jobs, runs
from input_pipeline.corpus.columns import Rows
from input_pipeline.corpus.jobs import Job, Run
from input_pipeline.corpus.sift import ROWS
from input_pipeline.files import listing, tables, whole
from input_pipeline.files.ranges import source_path

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
    tasks = [(job, job.work_file(output, "hashes", given), (job.table, given)) for job in tables_]
    jobs.compute(write_hashes, tasks, run, console, "Reading captions, to count their copies")
    files = tuple(path for _, path, _ in tasks)
    total = sum(jobs.sizes(files)) // _HASH.itemsize
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
    """Writes the hashes of a table's captions, in sorted runs."""
    return jobs.attempt(table, _write_hashes, source_path(path), source_path(table), given)


def _write_hashes(path: Path, table: Path, given: Mapping[str, Sequence[str]]) -> str:
    schema, _ = tables.stream(table, ROWS)
    found = {"caption": columns.find("caption", schema.names, given)}
    _, batches = tables.stream(table, ROWS, found["caption"])

    def hashes():
        for batch in batches:
            values = captions.hashes(Rows(batch, found, 0).text("caption"))
            yield values[values != 0]  # 0: there is no caption

    runs.write(path, hashes(), _HASH)
    return ""


def count(path: Path, files: Sequence[Path], low: int, high: int, most: int) -> str:
    """Writes the hashes in [low, high) that are more than `most` times in the files."""
    return jobs.attempt(path, _count, source_path(path), files, low, high, most)


def _count(path: Path, files: Sequence[Path], low: int, high: int, most: int) -> str:
    values, counts = [np.zeros(0, _HASH)], [np.zeros(0, np.int64)]
    for file in files:
        for run in runs.between(source_path(file), _HASH, low, high):
            # Of each run at once: one caption may be there a hundred million times.
            for found, part in zip((values, counts), np.unique(run, return_counts=True)):
                found.append(part)
    different, places = np.unique(np.concatenate(values), return_inverse=True)
    times = np.zeros(len(different), np.int64)
    np.add.at(times, places, np.concatenate(counts))
    whole.write_whole(path, different[times > most].tobytes())
    return ""
