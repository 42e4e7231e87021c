"""Image-text similarity by a model that was trained here, as a filter over metadata.

`python -m big_vlp.embed --captions` writes the features of images and captions. Each pair's cosine
is found there, rows of metadata take theirs by id, and the best of all rows are kept. Ids are
joined by hashes of 64 bits: all scores are sorted by them into files of a range each.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console

from input_pipeline.corpus import jobs, runs, scores
from input_pipeline.corpus.columns import Rows
from input_pipeline.corpus.jobs import Job, Run
from input_pipeline.corpus.sift import sift
from input_pipeline.files import listing
from input_pipeline.files.ranges import source_path

BINS = 200
_PART = 2**22  # scores of a range, about
_VALUES = 2**20  # that are ranked or counted at once


@dataclass(frozen=True)
class Embeddings:
    """A file of `big_vlp.embed`.

    Attributes:
      path, bytes, modified: of it; by these, without the folder, it is told from others.
    """

    path: Path | epath.Path
    bytes: int
    modified: int

    @property
    def size(self) -> float:
        """Share of the work, MB."""
        return self.bytes / 1e6


@dataclass(frozen=True)
class _Range:
    """A range of hashes; `size` is that of its scores, MB."""

    number: int
    size: float


class Best:
    """The check of one table: rows below the cut fail, and of those on it all but the first few.

    Args:
      similarities: f32[rows] of the table, NaN where there are no embeddings.
      cut: the least that is kept.
      ties: rows of just `cut` that are kept; None for all.
    """

    kinds = ()

    def __init__(self, similarities: np.ndarray, cut: float, ties: int | None):
        self.name = f"similarity below {cut:.6g}"
        self._similarities, self._cut, self._ties = similarities, np.float32(cut), ties
        self._seen = 0  # rows on the cut

    def __call__(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        values = self._similarities[rows.first : rows.first + len(rows)]
        fails = values < self._cut
        if self._ties is not None:
            on_cut = values == self._cut
            fails |= on_cut & (self._seen + np.cumsum(on_cut) > self._ties)
            self._seen += int(on_cut.sum())
        return values, fails


def find_embeddings(pattern: str) -> list[Embeddings]:
    """Raises ValueError or OSError: there is none, or one is of another kind."""
    found = listing.find(pattern)
    if not found:
        raise FileNotFoundError(f"Nothing matches --embeddings {pattern!r}.")
    made = []
    for path, (size, modified) in zip(found, listing.status(found).tolist()):
        if path.suffix not in (".npz", ".parquet"):
            raise ValueError(f"{path} is no .npz or .parquet, as `python -m big_vlp.embed` writes.")
        made.append(Embeddings(path, size, modified))
    return made


def match(
    tables_: Sequence[Job],
    embeddings: Sequence[Embeddings],
    output: Path | epath.Path,
    given: Mapping[str, Sequence[str]],
    run: Run,
    console: Console,
) -> list[Path | epath.Path]:
    """For each table a file of f32[rows], for `Mapped`.

    Raises:
      ValueError: as `jobs.compute`, or no row has embeddings.
      OtherCaptionError: embeddings are of other rows.
    """
    tasks = []
    for file in embeddings:
        path = jobs.work_file(output, file.path.name, file.bytes, file.modified)
        tasks.append((file, path, (file.path,)))
    jobs.compute(scores.write_scores, tasks, run, console, "Comparing images and captions")
    named = [(path, file.path.name) for file, path, _ in tasks]
    ranges = _join(named, output, run, console)
    names = [path.name for path in ranges]
    tasks = [
        (job, job.work_file(output, "similarity", names, given), (job.table, ranges, given))
        for job in tables_
    ]
    jobs.compute(scores.write_rows, tasks, run, console, "Joining them to rows")
    found = [path for _, path, _ in tasks]
    if all(np.isnan(values).all() for part in Mapped(found) for values in _slices(part)):
        mine = next((ids for ids, _ in scores.rows_of(tables_[0].table, given)), [])
        theirs = next((ids for ids, _, _ in scores.pairs(embeddings[0].path)), [])
        raise ValueError(
            f"No row has embeddings: ids of rows are e.g. {mine[:1]}, of embeddings {theirs[:1]}. "
            "By default a row's id is <file stem>/<row>, as of the source `table`; --column "
            "id=NAME has them from a column."
        )
    return found


def _join(
    named: Sequence[tuple[Path, str]], output: Path | epath.Path, run: Run, console: Console
) -> tuple[Path | epath.Path, ...]:
    """Sorts the scores of all files by the hash of their ids, into files of a range each; `named`
    are the files with the names of their embeddings."""
    total = sum(jobs.sizes([path for path, _ in named]))
    number = max(1, -(-total // (_PART * scores.SCORE.itemsize)))
    tasks = []
    for i, (low, high) in enumerate(itertools.pairwise(scores.bounds(number))):
        path = jobs.work_file(output, "scores", [path.name for path, _ in named], low, high)
        tasks.append((_Range(i, total / number / 1e6), path, (named, low, high)))
    jobs.compute(scores.write_range, tasks, run, console, "Sorting them by id")
    return tuple(path for _, path, _ in tasks)


class Mapped(Sequence):
    """f32[rows] of tables, NaN where there are no embeddings. Each is mapped when it is asked for:
    of many tables a process may not hold all open."""

    def __init__(self, paths: Sequence[Path | epath.Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return runs.mapped(source_path(self._paths[index]), scores.ROW)


def _slices(part: np.ndarray) -> Iterator[np.ndarray]:
    return (part[first : first + _VALUES] for first in range(0, len(part), _VALUES))


def choose(parts: Sequence[np.ndarray], fraction: float) -> tuple[float, list[int]]:
    """The cut that keeps a share of all values, and how many of each part that are just on it.

    They are the first in the order of the parts, so that the number is exact.

    Args:
      parts: f32[rows] of each table, NaN where there is none, which does not count.

    Raises:
      ValueError: none would be kept.
    """
    total = sum(int((~np.isnan(values)).sum()) for part in parts for values in _slices(part))
    wanted = round(total * fraction)
    if not wanted:
        raise ValueError(f"--keep-fraction {fraction:g} of {total:,} rows with embeddings is none.")
    # The value of this rank by its upper half, then by its lower one: nothing is sorted.
    above, prefix = 0, 0
    for shift in (16, 0):
        counts = np.zeros(2**16, np.int64)
        for keys in (_keys(values) for part in parts for values in _slices(part)):
            inside = keys if shift else keys[keys >> 16 == prefix]
            counts += np.bincount((inside >> shift) & 0xFFFF, minlength=2**16)
        from_top = above + np.cumsum(counts[::-1])
        rank = int(np.searchsorted(from_top, wanted))
        digit = 2**16 - 1 - rank
        above = int(from_top[rank] - counts[digit])
        prefix = prefix << 16 | digit
    left, ties = wanted - above, []
    for part in parts:
        equal = sum(int((_keys(values) == prefix).sum()) for values in _slices(part))
        ties.append(min(left, equal))
        left -= ties[-1]
    bits = prefix ^ 0x80000000 if prefix >> 31 else prefix ^ 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32)), ties


def _keys(values: np.ndarray) -> np.ndarray:
    """u32 of the same order as the values that are there; 0 and -0 are one."""
    bits = (values[~np.isnan(values)] + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def histogram(parts: Sequence[np.ndarray]) -> np.ndarray:
    """i64[BINS] over [-1, 1]."""
    edges = np.linspace(-1, 1, BINS + 1)
    return sum(
        np.histogram(np.clip(values[~np.isnan(values)], -1, 1), edges)[0].astype(np.int64)
        for part in parts
        for values in _slices(part)
    )


def sift_best(
    job: Job,
    output: Path,
    about: dict[str, Any],
    similarities: Path,
    cut: float,
    ties: int | None,
) -> dict[str, Any] | str:
    """Writes the rows of a table that are kept, see `sift`."""

    def write() -> dict[str, Any]:
        check = Best(runs.mapped(source_path(similarities), scores.ROW), cut, ties)
        return sift(job, output, about, [check], {}, keep_missing=False)

    return jobs.attempt(job.table, write)
