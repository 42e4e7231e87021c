"""Says which images of some data sets are copies of better ones, or of test images.

Images are ranked: those of test sets come first, then the larger area, then more bytes; the digest
decides between equals, and the id between images of the same bytes. From the best on, an image is
dropped if a better-ranked one that is kept lies within the distance. That depends on nothing but
the images, and what an image is dropped for stays.
"""

import array
import io
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from etils import epath
from rich.console import Console
from rich.table import Table

from input_pipeline.duplicates import hashing, search, signatures
from input_pipeline.duplicates.dropped import DATA, REASONS, SCHEMA, bytes_of
from input_pipeline.duplicates.search import NOBODY, Arrays, Settings
from input_pipeline.files import listing
from input_pipeline.files.ranges import open_file
from input_pipeline.files.whole import parts_of, write_json, write_whole
from input_pipeline.workers import Run, say

_DESCRIPTION = "input.json"
_GROUPS = "copy_of.npy"  # i64[n]: the row whose image has the same bytes, and is searched for
_PAIRS_AT_ONCE = 1 << 20
_NUMBERS = ("width", "height", "bytes", "digest", "hash", "mirrored_hash", "detail", "thumbnail")


@dataclass(frozen=True)
class DataSet:
    """A directory of hashes.

    Attributes:
      name: of the directory.
      is_test: its images are kept out of the others, and never dropped.
      parts: files of it, in order, and the number of images in each.
      images: in all parts.
      fingerprint: of all parts.
    """

    name: str
    is_test: bool
    parts: tuple[tuple[Path | epath.Path, int], ...]
    images: int
    fingerprint: str


def open_hashes(path: Path | epath.Path, is_test: bool) -> DataSet:
    """Raises ValueError or OSError where there are none, or not all."""
    try:
        described = json.loads((path / hashing.HASHES_FILE).read_bytes())
        version = described["version"]
        parts = [(part["file"], part["images"], part["sha256"]) for part in described["parts"]]
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path / hashing.HASHES_FILE} does not exist: make or finish the hashes with `python "
            "-m input_pipeline.duplicates hash`."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / hashing.HASHES_FILE} is damaged ({error!r}): delete it, and run `python -m "
            "input_pipeline.duplicates hash` again."
        ) from None
    if version != hashing.FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}; this code reads {hashing.FORMAT_VERSION}. Hash "
            "the images again into a new directory."
        )
    return DataSet(
        name=path.absolute().name if isinstance(path, Path) else path.name,
        is_test=is_test,
        parts=tuple((path / file, images) for file, images, _ in parts),
        images=sum(images for _, images, _ in parts),
        fingerprint=listing.fingerprint(*(sha256 for *_, sha256 in parts)),
    )


def find(
    hashes: Sequence[Path | epath.Path],
    against: Sequence[Path | epath.Path],
    output: Path,
    settings: Settings,
    run: Run,
    console: Console,
) -> None:
    """Writes the list of what is to be dropped (`dropped.SCHEMA`), and prints a table.

    What is found lies in `OUTPUT.parts` until all is; a killed run continues there.

    Args:
      hashes: directories of the hashes of what is to be searched; against: of test sets.
      run: `run(function, tasks, unit, console)`, as `command_line.runner` gives it.

    Raises:
      ValueError, OSError: hashes are missing or damaged, or a directory is given twice.
      KeyboardInterrupt: after the workers were ended.
    """
    started = time.monotonic()
    data = [open_hashes(path, is_test) for is_test, paths in ((True, against), (False, hashes))
            for path in paths]  # fmt: skip
    data.sort(key=lambda one: (not one.is_test, one.name))
    if twice := {one.name for one in data if sum(one.name == other.name for other in data) > 1}:
        raise ValueError(
            f"Two directories of hashes are called {min(twice)!r}, and names tell data sets apart: "
            "rename one, or give each once."
        )
    folder = parts_of(output)
    wanted = {
        "version": hashing.FORMAT_VERSION,
        "data": [[one.name, one.is_test, one.fingerprint] for one in data],
        "settings": vars(settings),
    }
    tests = _gather(folder, data, wanted, console)
    arrays = Arrays(folder)
    searched = np.flatnonzero(arrays.rank[:] != NOBODY)
    planned = search.plan(len(searched), settings, f"{listing.fingerprint(json.dumps(wanted))}-")
    there = {path.name for path in folder.iterdir()}
    tasks = [(t, (t, folder, tests, settings)) for t in planned if t.name not in there]
    if len(tasks) < len(planned):
        say(console, f"{len(planned) - len(tasks)} of {len(planned)} parts are searched already.")
    for _ in run(search.search, tasks, unit="parts", console=console):
        pass
    found = [np.load(folder / task.name, allow_pickle=False) for task in planned]
    kept = _kept_matches(search.best_pairs(np.concatenate(found)), len(searched))
    del found
    table, again = _listed(data, folder, arrays, kept, tests, settings)
    written = io.BytesIO()
    pa.parquet.write_table(table, written, compression="zstd")
    write_whole(output, written.getvalue())
    shutil.rmtree(folder)
    _summary(console, data, table, again, time.monotonic() - started)
    say(console, f"Wrote {output}")


def _kept_matches(pairs: np.ndarray, images: int) -> np.ndarray:
    """u32[images]: the best neighbour that is kept, by rank; `NOBODY` for images that are kept.

    Args:
      pairs: as `search.best_pairs`: when an image comes, the better ones are decided.
    """
    is_dropped = bytearray(images)
    dropped, matches = array.array("I"), array.array("I")
    for first in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = search.ranks(pairs[first : first + _PAIRS_AT_ONCE])
        for mine, other in zip(*(each.tolist() for each in some)):
            if not (is_dropped[mine] or is_dropped[other]):
                is_dropped[mine] = 1
                dropped.append(mine)
                matches.append(other)
    found = np.full(images, NOBODY, np.uint32)
    found[np.frombuffer(dropped, np.uint32)] = np.frombuffer(matches, np.uint32)
    return found


def _gather(folder: Path, data: list[DataSet], wanted: dict[str, Any], console: Console) -> int:
    """Makes the `Arrays` of all images, unless an earlier run has; returns the number of ranks that
    test images have. `wanted` says what they are of."""
    try:
        described = json.loads((folder / _DESCRIPTION).read_bytes())
        if described["wanted"] == wanted:
            return described["tests"]
        say(console, f"{folder} is of other hashes or options, and is made again.")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total = sum(one.images for one in data)
    if total >= NOBODY:
        raise ValueError(f"{total:,} images are too many for one search ({NOBODY:,}).")
    arrays = Arrays(folder, total)
    digest = np.empty((total, 2), np.uint64)
    area, size = np.empty(total, np.int64), np.empty(total, np.int64)
    is_flat, is_train = np.empty(total, bool), np.empty(total, bool)
    first = 0
    for one in data:
        for path, images in one.parts:
            columns = _read(path, images, _NUMBERS)
            rows = slice(first, first + images)
            digest[rows] = bytes_of(columns["digest"]).view(">u8").reshape(-1, 2)
            size[rows] = columns["bytes"].to_numpy()
            area[rows] = columns["width"].to_numpy().astype(np.int64) * columns["height"].to_numpy()
            is_flat[rows] = columns["hash"].is_null().to_numpy()
            is_train[rows] = not one.is_test
            for name in ("hash", "mirrored_hash"):
                getattr(arrays, name)[rows] = columns[name].fill_null(0).to_numpy()
            arrays.detail[rows] = bytes_of(columns["detail"]).view("<u8")
            arrays.thumbnail[rows] = bytes_of(columns["thumbnail"])
            arrays.contrast[rows] = signatures.contrast(arrays.thumbnail[rows])
            first += images
    copy_of = _copies(data, digest, is_train)
    own = np.flatnonzero((copy_of == np.arange(total)) & ~is_flat)
    keys = digest[own, 1], digest[own, 0], -size[own], -area[own], is_train[own]
    arrays.rank[:] = NOBODY
    arrays.rank[own[np.lexsort(keys)]] = np.arange(len(own), dtype="<u4")
    arrays.flush()
    np.save(folder / _GROUPS, copy_of)
    tests = int((~is_train[own]).sum())
    write_json(folder / _DESCRIPTION, {"wanted": wanted, "tests": tests})
    return tests


def _copies(data: list[DataSet], digest: np.ndarray, is_train: np.ndarray) -> np.ndarray:
    """i64[n]: for each row the first of the same bytes, by test or not, id, data set; its own if
    there is none. -1 - row for a record, id and bytes, that its data set has already: no list could
    name just one of the two."""
    order = np.lexsort((digest[:, 1], digest[:, 0]))
    ordered = digest[order]
    is_same = (ordered[1:] == ordered[:-1]).all(axis=1)
    group = np.concatenate([[0], np.cumsum(~is_same)]) if len(order) else np.zeros(0, int)
    in_groups = np.zeros(len(order), bool)
    in_groups[1:] |= is_same
    in_groups[:-1] |= is_same
    rows, group = order[in_groups], group[in_groups]
    by_row = np.argsort(rows)
    rows, group = rows[by_row], group[by_row]
    table = pa.table({"group": group, "train": is_train[rows], "id": _ids(data, rows), "row": rows})
    table = table.sort_by([(name, "ascending") for name in table.column_names])
    group, row = (table[name].to_numpy() for name in ("group", "row"))
    copy_of = np.arange(len(digest))
    if len(row):
        starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
        copy_of[row] = np.repeat(row[starts], np.diff(starts, append=len(row)))
        ids = table["id"].combine_chunks()
        is_repeated = pa.compute.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        owner = _owners(data, row)
        is_repeated &= (group[1:] == group[:-1]) & (owner[1:] == owner[:-1])
        repeated = row[1:][is_repeated]
        copy_of[repeated] = -1 - copy_of[repeated]
    return copy_of


def _owners(data: list[DataSet], rows: np.ndarray) -> np.ndarray:
    """i64[n]: the number of the data set that each row is of."""
    return np.searchsorted(np.cumsum([one.images for one in data]), rows, side="right")


def _listed(
    data: list[DataSet],
    folder: Path,
    arrays: Arrays,
    kept: np.ndarray,
    tests: int,
    settings: Settings,
) -> tuple[pa.Table, int]:
    """The list, in the order of data sets and ids, and the number of records that their data set
    has already.

    Args:
      kept: see `_kept_matches`.
    """
    rank = arrays.rank[:]
    searched = np.flatnonzero(rank != NOBODY)
    row_of = np.empty(len(searched), np.int64)
    row_of[rank[searched]] = searched
    del rank, searched
    copy_of = np.load(folder / _GROUPS, allow_pickle=False)
    rows = np.arange(len(copy_of))
    owner = _owners(data, rows)
    is_train = ~np.array([one.is_test for one in data])[owner]
    match = np.full(len(rows), -1)
    reason = np.full(len(rows), -1, np.int8)
    found = np.flatnonzero(kept != NOBODY)
    match[row_of[found]] = row_of[kept[found]]
    reason[row_of[found]] = np.where(kept[found] < tests, 2, 1)
    # What holds of an image that was searched for holds of its copies; else they are copies of it.
    copies = np.flatnonzero(is_train & (copy_of >= 0) & (copy_of != rows))
    firsts = copy_of[copies]
    follows = reason[firsts] >= 0
    match[copies] = np.where(follows, match[firsts], firsts)
    reason[copies] = np.where(follows, reason[firsts], np.where(is_train[firsts], 0, 2))
    again = int((is_train & (copy_of < 0)).sum())
    dropped = np.flatnonzero(reason >= 0)
    others = match[dropped]
    distance = np.zeros(len(dropped), np.uint8)
    # Of the images that were searched for: the others may have no hash.
    by_hash = np.flatnonzero(copy_of[dropped] != copy_of[others])
    distance[by_hash] = search.distances(
        arrays, dropped[by_hash], others[by_hash], settings.mirrored
    )
    names = np.array([one.name for one in data], object)
    needed = np.unique(np.concatenate([dropped, others]))
    ids = _ids(data, needed)
    digests = pa.concat_arrays(
        [pa.array([], SCHEMA.field("digest").type), *_taken(data, dropped, "digest")]
    )
    table = pa.table(
        {
            "id": ids.take(pa.array(np.searchsorted(needed, dropped))),
            "digest": digests,
            "data": pa.array(names[owner[dropped]], pa.large_string()),
            "reason": pa.array(np.array(REASONS, object)[reason[dropped]], pa.large_string()),
            "match": ids.take(pa.array(np.searchsorted(needed, others))),
            "match_data": pa.array(names[owner[others]], pa.large_string()),
            "distance": distance,
        }
    ).cast(SCHEMA)
    # Images of one record that are like each other do not speak against it.
    same = [
        pa.compute.equal(table[a], table[b]) for a, b in (("id", "match"), (DATA, "match_data"))
    ]
    table = table.filter(pa.compute.invert(pa.compute.and_(*same)))
    table = table.sort_by([("data", "ascending"), ("id", "ascending"), ("digest", "ascending")])
    searched = [one.name for one in data if not one.is_test]
    said = {"settings": json.dumps(vars(settings)), DATA: json.dumps(searched)}
    return table.combine_chunks().replace_schema_metadata(said), again


def _ids(data: list[DataSet], rows: np.ndarray) -> pa.Array:
    """Of some rows, ascending; strings with room for more than 2 GB."""
    taken = [piece.cast(pa.large_string()) for piece in _taken(data, rows, "id")]
    return pa.concat_arrays([pa.array([], pa.large_string()), *taken])


def _taken(data: list[DataSet], rows: np.ndarray, column: str) -> list[pa.Array]:
    """A column at some rows, ascending, in pieces."""
    pieces, first = [], 0
    for one in data:
        for path, count in one.parts:
            low, high = np.searchsorted(rows, [first, first + count])
            if low < high:
                values = _read(path, count, (column,))[column].combine_chunks()
                pieces.append(values.take(pa.array(rows[low:high] - first)))
            first += count
    return pieces


def _read(path: Path | epath.Path, images: int, columns: Sequence[str]) -> pa.Table:
    """Raises ValueError: the file is damaged."""
    try:
        with open_file(path) as file:
            table = pa.parquet.read_table(file, columns=list(columns))
        if len(table) != images:
            raise ValueError(f"{len(table)} images instead of {images}")
        return table
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and run `python -m input_pipeline.duplicates "
            "hash` again."
        ) from None


def _summary(
    console: Console, data: list[DataSet], table: pa.Table, again: int, seconds: float
) -> None:
    shown = Table(show_header=False)
    shown.add_row("images", f"{sum(one.images for one in data if not one.is_test):,}")
    shown.add_row("test images", f"{sum(one.images for one in data if one.is_test):,}")
    for reason in REASONS:
        count = pa.compute.sum(pa.compute.equal(table["reason"], reason)).as_py() or 0
        shown.add_row(f"dropped: {reason}", f"{count:,}")
    if again:
        shown.add_row("twice in one data set: not listed", f"{again:,}")
    for one in data:
        column = "match_data" if one.is_test else "data"
        found = table.filter(pa.compute.equal(table[column], one.name))
        if one.is_test:
            count = pa.compute.count_distinct(found["match"]).as_py()
            shown.add_row(f"test images found: {one.name}", f"{count:,} of {one.images:,}")
        else:
            shown.add_row(f"dropped of {one.name}", f"{len(found):,} of {one.images:,}")
    shown.add_row("time", f"{seconds:.1f} s")
    console.print(shown)
