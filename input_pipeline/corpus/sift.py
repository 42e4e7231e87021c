"""Writes the rows of one table that pass all checks, and counts and samples those that do not."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from input_pipeline.corpus import columns, jobs
from input_pipeline.corpus.columns import Rows
from input_pipeline.corpus.jobs import Job
from input_pipeline.files import tables
from input_pipeline.files.ranges import source_path

ROWS = 8192  # that are looked at at once
SAMPLED = 20  # of what each check drops
_GROUP_ROWS = 65_536  # of a group in the parquet that is written
_SHOWN_CHARACTERS = 200


class Check(Protocol):
    """What a row must pass.

    Attributes:
      name: what is wrong with the rows that it drops.
      kinds: of the columns that it needs.
    """

    name: str
    kinds: tuple[str, ...]

    def __call__(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """(f[rows], NaN where there is no value; bool[rows]: fails).

        It is called for all rows of a table, in their order.
        """


def sift(
    job: Job,
    output: Path,
    about: dict[str, Any],
    checks: Sequence[Check],
    given: Mapping[str, Sequence[str]],
    keep_missing: bool,
) -> dict[str, Any]:
    """Writes the parquet of a table, with the same columns, and its JSON.

    A row that fails several checks is counted at the first; its sample is drawn by a hash of its
    place, so it depends on the table alone.

    Args:
      about: see `jobs.write`.
      given: kind -> columns that the user named.
      keep_missing: rows without a value pass.

    Returns:
      What `jobs.place` does. The JSON has `rows`, `kept`, and for each check how many it `dropped`,
      of these `no_value`, how many `alone`, were it the only one, and `samples`.

    Raises:
      ValueError, OSError, ArrowException: the table cannot be read, or a column is missing.
    """
    output, table = source_path(output), source_path(job.table)
    schema, batches = tables.stream(table, ROWS)
    kinds = {kind for check in checks for kind in check.kinds}
    found = {kind: columns.find(kind, schema.names, given) for kind in sorted(kinds)}
    tallies = [_Tally(check, _shown(schema.names, found)) for check in checks]
    with jobs.temporary(jobs.work_folder(output), job.file) as temporary:
        rows, kept = 0, 0
        with pa.parquet.ParquetWriter(temporary, schema) as writer:
            waiting: list[pa.RecordBatch] = []
            for batch, keys in _keyed(job, batches):
                passed = _passed(Rows(batch, found, rows), keys, tallies, keep_missing)
                rows, kept = rows + len(passed), kept + int(passed.sum())
                waiting.append(batch.filter(pa.array(passed)))
                if sum(len(part) for part in waiting) >= _GROUP_ROWS:
                    _write(writer, waiting)
            _write(writer, waiting)
        counted = [tally.describe() for tally in tallies]
        info = {"rows": rows, "kept": kept, "rules": counted}
        return jobs.place(temporary, output, job, about, info)


def _keyed(job: Job, batches: Iterator[pa.RecordBatch]):
    """(batch, u64[rows], by which rows are drawn)."""
    seed = hashlib.blake2b(job.file.encode(), digest_size=8).digest()
    generator = np.random.PCG64(int.from_bytes(seed, "little"))
    for batch in batches:
        yield batch, generator.random_raw(batch.num_rows)


def _passed(
    rows: Rows, keys: np.ndarray, tallies: Sequence["_Tally"], keep_missing: bool
) -> np.ndarray:
    left = np.ones(len(rows), bool)
    for tally in tallies:
        values, fails = tally.check(rows)
        missing = np.zeros_like(fails) if keep_missing else np.isnan(values)
        tally.add(rows, keys, values, missing, fails, left)
        left &= ~(fails | missing)
    return left


class _Tally:
    """What one check drops of a table."""

    def __init__(self, check: Check, shown: Mapping[str, int]):
        self.check, self._shown = check, shown
        self._dropped = self._no_value = self._alone = 0
        self._samples: list[tuple[int, dict[str, Any]]] = []

    def add(self, rows: Rows, keys, values, missing, fails, left) -> None:
        bad = fails | missing
        first = bad & left
        self._alone += int(bad.sum())
        self._dropped += int(first.sum())
        self._no_value += int((missing & left).sum())
        if len(self._samples) == SAMPLED:
            first &= keys < self._samples[-1][0]
        for place in np.flatnonzero(first)[np.argsort(keys[first])][:SAMPLED]:
            self._samples.append((int(keys[place]), self._row(rows, int(place), values[place])))
        self._samples = sorted(self._samples, key=lambda sample: sample[0])[:SAMPLED]

    def _row(self, rows: Rows, place: int, value: float) -> dict[str, Any]:
        found = {"row": rows.first + place, "value": None if np.isnan(value) else float(value)}
        for kind, index in self._shown.items():
            with contextlib.suppress(ValueError):  # no UTF-8
                text = str(rows.batch.column(index)[place].as_py() or "")
                found[kind] = " ".join(text.split())[:_SHOWN_CHARACTERS]
        return found

    def describe(self) -> dict[str, Any]:
        return {
            "rule": self.check.name,
            "dropped": self._dropped,
            "no_value": self._no_value,
            "alone": self._alone,
            "samples": [{"key": key, **row} for key, row in self._samples],
        }


def _shown(names: Sequence[str], found: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Kind -> number of its column, of those by which a row is recognised, as far as they are
    known."""
    shown = {}
    for kind in ("url", "caption"):
        known = [name for name in names if name.lower() in columns.KNOWN[kind]]
        if chosen := found.get(kind) or known:
            shown[kind] = list(names).index(chosen[0])
    return shown


def _write(writer: pa.parquet.ParquetWriter, waiting: list[pa.RecordBatch]) -> None:
    """Writes a group of rows, and forgets them."""
    if any(len(part) for part in waiting):
        writer.write_table(pa.Table.from_batches(waiting), _GROUP_ROWS + ROWS)
    waiting.clear()
