"""For every image the best-ranked one that is nearly the same: tasks over arrays on a disk.

Each image stands in the search with its hash and with that of its mirror image. A task looks at one
choice of bits (see `hamming`) and one part of the hashes, by what they are in these bits; it writes
at most one line per image, however many are alike, and tasks need nothing of each other.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.duplicates import hamming, signatures
from input_pipeline.files.whole import write_whole

NOBODY = np.iinfo(np.uint32).max  # a rank: of an image that takes no part; of no image
FOUND = np.dtype([("row", "<u4"), ("best", "<u4")])
# Of images that share one hash, so many of the best-ranked are compared with the others: blank
# pages and the like may be millions.
MOST_ALIKE = 256
_ENTRIES_PER_TASK = 1 << 24
_ROWS_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 15
_FEW_BITS = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads keys over parts


@dataclass(frozen=True)
class Settings:
    """What decides which images are nearly the same.

    Attributes:
      distance: most bits in which their hashes differ.
      difference: most that their thumbnails do, see `signatures.differences`.
      mirrored: whether one may be the mirror image of the other.
    """

    distance: int
    difference: float
    mirrored: bool


class Arrays:
    """Signatures of all images, a row each, as files of one folder.

    Attributes:
      hash, mirrored_hash: u64[n].
      thumbnail: u8[n, 192].
      contrast: f32[n], of the thumbnails.
      rank: u32[n], each once, low ones are better; `NOBODY` for rows that take no part.
    """

    TYPES = (
        ("hash", "<u8", ()),
        ("mirrored_hash", "<u8", ()),
        ("thumbnail", "u1", (signatures.THUMBNAIL_BYTES,)),
        ("contrast", "<f4", ()),
        ("rank", "<u4", ()),
    )

    def __init__(self, folder: Path, rows: int | None = None):
        """Opens the arrays of a folder, or, given the number of rows, makes them."""
        for name, kind, shape in self.TYPES:
            path = folder / f"{name}.npy"
            if rows is None:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                array = np.lib.format.open_memmap(path, "w+", kind, (rows, *shape))
            setattr(self, name, array)

    def flush(self) -> None:
        for name, *_ in self.TYPES:
            getattr(self, name).flush()


@dataclass(frozen=True)
class Task:
    """A choice of bits, and one of the parts that hashes fall into by these."""

    name: str
    choice: hamming.Choice
    part: int
    parts: int
    size: float = 1.0


def plan(images: int, settings: Settings) -> list[Task]:
    """The tasks that together find everything; `images`: those that take part."""
    entries = images * (1 + settings.mirrored)
    chosen = hamming.choices(entries, settings.distance)
    parts = max(1, -(-entries // _ENTRIES_PER_TASK)) if chosen[0].equal else 1
    return [
        Task(f"found-{choice.name()}-part-{part}-of-{parts}.npy", choice, part, parts)
        for choice in chosen
        for part in range(parts)
    ]


def search(task: Task, folder: Path, tests: int, settings: Settings) -> int:
    """Writes the rows that have a better-ranked image within the distance in this part, and the
    rank of the best of them, as `FOUND`; returns their number.

    Args:
      folder: of the `Arrays`; the file is put there, too.
      tests: images of lower rank are of test sets, and are compared with no better one.
    """
    arrays = Arrays(folder)
    entries = _Entries.of(task, arrays, settings.mirrored)
    best = _Best(entries, arrays, tests, settings.difference)
    if task.choice.has_equal():
        same = np.flatnonzero(entries.sizes > 1)
        best.compare(same, same)
    for i, j in hamming.pairs_of(entries.hashes, settings.distance, task.choice):
        best.compare(np.concatenate([i, j]), np.concatenate([j, i]))
    found = best.found()
    written = io.BytesIO()
    np.save(written, found, allow_pickle=False)
    write_whole(folder / task.name, written.getvalue())
    return len(found)


@dataclass
class _Entries:
    """Images and mirror images, those of one hash together, the better-ranked first.

    Attributes:
      hashes: u64[h], all different.
      starts, sizes: i64[h]: the first entry of each hash, and their number.
      row: i64[e], of the image in `Arrays`.
      rank: u32[e], of the image.
      is_mirrored: bool[e].
    """

    hashes: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    row: np.ndarray
    rank: np.ndarray
    is_mirrored: np.ndarray

    @classmethod
    def of(cls, task: Task, arrays: Arrays, mirrored: bool) -> "_Entries":
        found = list(_in_part(task, arrays, mirrored))
        hashes, row, rank, is_mirrored = map(np.concatenate, zip(*found))
        order = np.lexsort((rank, hashes))
        hashes, row, rank, is_mirrored = (a[order] for a in (hashes, row, rank, is_mirrored))
        is_start = np.ones(len(hashes), bool)
        is_start[1:] = hashes[1:] != hashes[:-1]
        starts = np.flatnonzero(is_start)
        sizes = np.diff(starts, append=len(hashes))
        return cls(hashes[starts], starts, sizes, row, rank, is_mirrored)


def _in_part(task: Task, arrays: Arrays, mirrored: bool) -> Iterator[tuple[np.ndarray, ...]]:
    """Hash, row, rank and whether it is that of the mirror image, of the entries of a part."""
    for is_mirrored in (False, True)[: 1 + mirrored]:
        hashes = arrays.mirrored_hash if is_mirrored else arrays.hash
        for first in range(0, max(1, len(hashes)), _ROWS_AT_ONCE):
            some = hashes[first : first + _ROWS_AT_ONCE]
            ranks = arrays.rank[first : first + _ROWS_AT_ONCE]
            chosen = ranks != NOBODY
            if task.parts > 1:
                key = task.choice.arrange(some) >> np.uint64(task.choice.rest())
                key = key * _FEW_BITS >> np.uint64(32)
                chosen &= key % np.uint64(task.parts) == task.part
            places = np.flatnonzero(chosen)
            flags = np.full(len(places), is_mirrored)
            yield some[places], first + places, ranks[places], flags


class _Best:
    """The best rank that was found for each image of some entries, at first its own."""

    def __init__(self, entries: _Entries, arrays: Arrays, tests: int, difference: float):
        self._entries, self._arrays = entries, arrays
        self._tests, self._difference = tests, difference
        self._rows, first, self._image = np.unique(
            entries.row, return_index=True, return_inverse=True
        )
        self._own = entries.rank[first]
        self._best = self._own.copy()

    def found(self) -> np.ndarray:
        better = self._best < self._own
        found = np.empty(better.sum(), FOUND)
        found["row"], found["best"] = self._rows[better], self._best[better]
        return found

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compares all images of a hash with the best of another: places of hashes, i64[n] each."""
        sizes = self._entries.sizes
        # From the best on: an image that has found a good one is not compared with those behind it.
        for number in range(MOST_ALIKE):
            there = sizes[theirs] > number
            ours, theirs = ours[there], theirs[there]
            if not len(ours):
                break
            others = self._entries.starts[theirs] + number
            # Cut where another so many entries are full.
            full = np.cumsum(sizes[ours]) // _PAIRS_AT_ONCE
            cuts = np.flatnonzero(full[1:] != full[:-1]) + 1
            for part in zip(np.split(ours, cuts), np.split(others, cuts)):
                self._compare(*part)

    def _compare(self, hashes: np.ndarray, others: np.ndarray) -> None:
        """Compares all images of each hash with one entry each."""
        entries = self._entries
        sizes = entries.sizes[hashes]
        ends = np.cumsum(sizes)
        mine = np.arange(ends[-1]) + np.repeat(entries.starts[hashes] - ends + sizes, sizes)
        others = np.repeat(others, sizes)
        wanted = entries.rank[others] < self._best[self._image[mine]]
        wanted &= entries.rank[mine] >= self._tests
        wanted &= ~(entries.is_mirrored[mine] & entries.is_mirrored[others])
        mine, others = mine[wanted], others[wanted]
        for first in range(0, len(mine), _PAIRS_AT_ONCE):
            part = slice(first, first + _PAIRS_AT_ONCE)
            self._look(mine[part], others[part])

    def _look(self, mine: np.ndarray, others: np.ndarray) -> None:
        entries = self._entries
        is_turned = entries.is_mirrored[mine] != entries.is_mirrored[others]
        rows = entries.row[mine], entries.row[others]
        one, other = (self._arrays.thumbnail[some] for some in rows)
        one[is_turned] = signatures.mirrored(one[is_turned])
        contrasts = tuple(self._arrays.contrast[some] for some in rows)
        alike = signatures.differences(one, other, contrasts) <= self._difference
        np.minimum.at(self._best, self._image[mine[alike]], entries.rank[others[alike]])


def distances(arrays: Arrays, one: np.ndarray, other: np.ndarray, mirrored: bool) -> np.ndarray:
    """u8[n]: bits in which hashes of rows i64[n] differ, of the images or of one's mirror image."""
    found = np.bitwise_count(arrays.hash[one] ^ arrays.hash[other])
    if mirrored:
        for a, b in ((one, other), (other, one)):
            turned = np.bitwise_count(arrays.hash[a] ^ arrays.mirrored_hash[b])
            found = np.minimum(found, turned)
    return found
