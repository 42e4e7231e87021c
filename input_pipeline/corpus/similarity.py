"""Image-text similarity by a model that was trained here, as a filter over metadata.

`python -m big_vlp.embed --captions` writes the features of images and captions. Each pair's cosine
is found there, rows of metadata take theirs by id, and the best of all rows are kept. Ids are
joined by hashes of 64 bits.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from etils import epath
from rich.console import Console

from input_pipeline.corpus import columns, jobs
from input_pipeline.corpus.columns import Rows
from input_pipeline.corpus.jobs import Job, Run
from input_pipeline.corpus.sift import ROWS, sift
from input_pipeline.files import listing, tables, whole
from input_pipeline.files.buckets import make_directory
from input_pipeline.files.copies import local_copy
from input_pipeline.files.ranges import open_file, source_path

BINS = 200
_PAIRS = 1024  # whose features are in memory
_SCORE = np.dtype([("id", "<u8"), ("score", "<f4")])
_ROW = np.dtype("<f4")


@dataclass(frozen=True)
class Embeddings:
    """A file of `big_vlp.embed`; `size` in MB."""

    path: Path | epath.Path
    size: float
    identity: tuple[Any, ...]


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
        made.append(Embeddings(path, size / 1e6, (path.name, size, modified)))
    return made


def match(
    tables_: Sequence[Job],
    embeddings: Sequence[Embeddings],
    output: Path | epath.Path,
    given: Mapping[str, Sequence[str]],
    run: Run,
    console: Console,
) -> list[Path | epath.Path]:
    """For each table a file of f32[rows], for `rows_of`.

    Raises:
      ValueError: as `jobs.compute`, or no row has embeddings.
    """
    make_directory(output)
    tasks = [
        (file, jobs.work_file(output, file.path.name, file.identity), (file.path,))
        for file in embeddings
    ]
    jobs.compute(write_scores, tasks, run, console, "Comparing images and captions")
    scores = tuple(path for _, path, _ in tasks)
    names = [path.name for path in scores]
    tasks = [
        (job, job.work_file(output, "similarity", names, given), (job.table, scores, given))
        for job in tables_
    ]
    jobs.compute(write_rows, tasks, run, console, "Joining them to rows")
    found = [path for _, path, _ in tasks]
    if not any((~np.isnan(rows_of(path))).any() for path in found):
        mine = next(_ids(tables_[0].table, given), [])
        theirs = next((ids for ids, _ in _pairs(embeddings[0].path)), [])
        raise ValueError(
            f"No row has embeddings: ids of rows are e.g. {mine[:1]}, of embeddings {theirs[:1]}. "
            "By default a row's id is <file stem>/<row>, as of the source `table`; --column "
            "id=NAME has them from a column."
        )
    return found


def rows_of(path: Path | epath.Path) -> np.ndarray:
    """f32[rows] of a table, NaN where there are no embeddings; mapped, not read."""
    copy = local_copy(source_path(path))
    return np.memmap(copy, _ROW, "r") if copy.stat().st_size else np.zeros(0, _ROW)


def choose(parts: Sequence[np.ndarray], fraction: float) -> tuple[float, list[int]]:
    """The cut that keeps a share of all values, and how many of each part that are just on it.

    They are the first in the order of the parts, so that the number is exact.

    Args:
      parts: f32[rows] of each table, NaN where there is none, which does not count.

    Raises:
      ValueError: none would be kept.
    """
    total = sum(int((~np.isnan(part)).sum()) for part in parts)
    wanted = round(total * fraction)
    if not wanted:
        raise ValueError(f"--keep-fraction {fraction:g} of {total:,} rows with embeddings is none.")
    # The value of this rank by its upper half, then by its lower one: nothing is sorted.
    above, prefix = 0, 0
    for shift in (16, 0):
        counts = np.zeros(2**16, np.int64)
        for part in parts:
            keys = _keys(part)
            inside = keys if shift else keys[keys >> 16 == prefix]
            counts += np.bincount((inside >> shift) & 0xFFFF, minlength=2**16)
        from_top = above + np.cumsum(counts[::-1])
        rank = int(np.searchsorted(from_top, wanted))
        digit = 2**16 - 1 - rank
        above = int(from_top[rank] - counts[digit])
        prefix = prefix << 16 | digit
    left, ties = wanted - above, []
    for part in parts:
        ties.append(min(left, int((_keys(part) == prefix).sum())))
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
        np.histogram(np.clip(part[~np.isnan(part)], -1, 1), edges)[0].astype(np.int64)
        for part in parts
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
    try:
        check = Best(rows_of(similarities), cut, ties)
    except (OSError, ValueError) as error:
        return jobs.reason(job.table, error)
    return sift(job, output, about, [check], {}, keep_missing=False)


def write_scores(path: Path, embeddings: Path) -> str:
    """Writes (hash of the id, similarity) of every image with captions, ascending."""
    path, embeddings = source_path(path), source_path(embeddings)
    try:
        parts = [np.zeros(0, _SCORE)]
        for ids, scores in _pairs(embeddings):
            part = np.zeros(len(ids), _SCORE)
            part["id"], part["score"] = _hashes(ids), scores
            parts.append(part[~np.isnan(scores)])
        found = np.concatenate(parts)
        found = found[np.argsort(found["id"], kind="stable")]
        if (found["id"][1:] == found["id"][:-1]).any():
            raise ValueError("an id is there twice: embed each image once")
        whole.write_whole(path, found.tobytes())
        return ""
    except (OSError, ValueError, pa.ArrowException) as error:
        return jobs.reason(embeddings, error)


def _pairs(path: Path | epath.Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """(ids, f32: cosine of image and caption, the highest of several, NaN where there is none), in
    parts; of an .npz, which is read as a whole, too.

    Raises:
      ValueError: the file is of another kind, or has no captions.
    """
    path = source_path(path)
    columns_ = ("ids", "image", "caption_ids", "text")
    if path.suffix == ".npz":
        with open_file(path) as file, np.load(file) as archive:
            _check(archive.files, columns_)
            ids, image, of_caption, text = (archive[name] for name in columns_)
        index = {id_: i for i, id_ in enumerate(ids.tolist())}
        if len(index) < len(ids) or not index.keys() >= set(of_caption.tolist()):
            raise ValueError("an id is there twice, or one of a caption has no image")
        parents = np.array([index[id_] for id_ in of_caption.tolist()], np.int64)
        for first in range(0, len(ids), _PAIRS):
            low, high = np.searchsorted(parents, (first, first + _PAIRS))
            chosen = slice(first, first + _PAIRS)
            score = _cosines(image[chosen], text[low:high], parents[low:high] - first)
            yield ids[chosen].tolist(), score
        return
    schema, _ = tables.stream(path, _PAIRS)
    names = ["id", "image", "text"]
    _check(schema.names, names)
    for batch in tables.stream(path, _PAIRS, names)[1]:
        ids, image, text = (batch.column(name) for name in names)
        parents = pa.compute.list_parent_indices(text).to_numpy()
        yield ids.to_pylist(), _cosines(_vectors(image), _vectors(text.flatten()), parents)


def _vectors(column: pa.Array) -> np.ndarray:
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else np.zeros((0, 1), np.float32)


def _check(names: Iterable[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"it has no {' and no '.join(missing)}: make it by `python -m big_vlp.embed --captions "
            "FIELD`, which embeds captions, too"
        )


def _cosines(image: np.ndarray, text: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """f32[images] of image [images, D] and text [captions, D]; NaN of one without captions, or of
    length 0."""
    best = np.full(len(image), -np.inf, np.float32)
    if len(text):
        with np.errstate(invalid="ignore", divide="ignore"):
            image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
            np.maximum.at(best, parents, np.einsum("nd,nd->n", image[parents], text))
    return np.where(np.isinf(best), np.float32(np.nan), best)


def write_rows(
    path: Path, table: Path, scores: Sequence[Path], given: Mapping[str, Sequence[str]]
) -> str:
    """Writes f32[rows] of a table: the similarity of each row's id, or NaN."""
    path, table = source_path(path), source_path(table)
    try:
        with jobs.temporary(path.parent, path.name) as temporary:
            with open(temporary, "wb") as file:
                for ids in _ids(table, given):
                    hashes = _hashes(ids)
                    row = np.full(len(ids), np.nan, _ROW)
                    for known in map(_load, scores):
                        places = np.searchsorted(known["id"], hashes)
                        hit = places < len(known)
                        hit[hit] = known["id"][places[hit]] == hashes[hit]
                        if twice := np.flatnonzero(hit & ~np.isnan(row)).tolist():
                            raise ValueError(
                                f"{ids[twice[0]]!r} is in two files of embeddings: give one of them"
                            )
                        row[hit] = known["score"][places[hit]]
                    file.write(row.tobytes())
            whole.place(temporary, path)
        return ""
    except (OSError, ValueError) as error:
        return jobs.reason(table, error)


@functools.lru_cache(maxsize=64)
def _load(path: Path | epath.Path) -> np.ndarray:
    copy = local_copy(source_path(path))
    return np.memmap(copy, _SCORE, "r") if copy.stat().st_size else np.zeros(0, _SCORE)


def _ids(
    table: Path | epath.Path, given: Mapping[str, Sequence[str]]
) -> Iterator[list[str | None]]:
    """The ids of a table's rows, in parts: from the column that was given, or by their place."""
    schema, _ = tables.stream(table, ROWS)
    found = {"id": columns.find("id", schema.names, given)} if "id" in given else {}
    first = 0
    for batch in tables.stream(table, ROWS, found.get("id", []))[1]:
        if found:
            yield Rows(batch, found, first).text("id").to_pylist()
        else:
            yield [f"{table.stem}/{first + i}" for i in range(batch.num_rows)]
        first += batch.num_rows


def _hashes(ids: Iterable[str | None]) -> np.ndarray:
    """u64[ids]; of one that is missing that of the empty string, which no record has."""
    parts = (hashlib.blake2b((id_ or "").encode(), digest_size=8).digest() for id_ in ids)
    return np.frombuffer(b"".join(parts), "<u8")
