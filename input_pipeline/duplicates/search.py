"""Which images are nearly the same as a better-ranked one: tasks over arrays on a disk.

Each image stands in the search with its hash and with that of its mirror image. A task looks at
some choices of blocks (see `hamming`) that have their first ones in common, and at one part of the
hashes, by what they are in these; it writes the pairs that it found, and tasks need nothing of each
other. So all hashes are read once for many choices.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.duplicates import hamming, signatures
from input_pipeline.files.whole import write_whole

NOBODY = np.iinfo(np.uint32).max  # a rank: of an image that takes no part
# So many better-ranked neighbours of an image are known, and of images that share one hash so many
# of the best-ranked are compared with the others: blank pages and the like may be millions.
MOST_ALIKE = 256
_COMMON = 2  # blocks of the choices of one task
_ENTRIES_PER_TASK = 1 << 24
_ROWS_AT_ONCE = 1 << 20
_PAIRS_AT_ONCE = 1 << 15
_PAIRS_HELD = 1 << 22
_RANK_BITS = np.uint64(32)
_FEW_BITS = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads keys over parts


@dataclass(frozen=True)
class Settings:
    """What decides which images are nearly the same.

    Attributes:
      distance: most bits in which their hashes differ.
      detail: most details in which they do, see `signatures.details`.
      difference: most that their thumbnails do, see `signatures.differences`.
      mirrored: whether one may be the mirror image of the other.
    """

    distance: int
    detail: int
    difference: float
    mirrored: bool


class Arrays:
    """Signatures of all images, a row each, as files of one folder.

    Attributes:
      hash, mirrored_hash: u64[n].
      detail: u64[n, 8], see `signatures.details`.
      thumbnail: u8[n, 192].
      contrast: f32[n], of the thumbnails.
      rank: u32[n], each once, low ones are better; `NOBODY` for rows that take no part.
    """

    TYPES = (
        ("hash", "<u8", ()),
        ("mirrored_hash", "<u8", ()),
        ("detail", "<u8", (signatures.DETAIL_BYTES // 8,)),
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
    """Choices that have their first blocks in common, and one of the parts that hashes fall into by
    these."""

    name: str
    choices: tuple[hamming.Choice, ...]
    part: int
    parts: int

    @property
    def size(self) -> int:
        return len(self.choices)


def plan(
    images: int, settings: Settings, what: str = "", entries_per_task: int = _ENTRIES_PER_TASK
) -> list[Task]:
    """The tasks that together find everything.

    Args:
      images: those that take part.
      what: identifies images and settings in the names of files: a task of an ended search that is
        still at it writes none of this one's.
      entries_per_task: hashes, of images and mirror images, that a task has in memory; about 100
        bytes each.
    """
    entries = images * (1 + settings.mirrored)
    chosen = hamming.choices(entries, settings.distance)
    parts = max(1, -(-entries // entries_per_task)) if chosen[0].equal else 1
    tasks = []
    for common, some in itertools.groupby(chosen, lambda choice: choice.equal[:_COMMON]):
        blocks = f"{chosen[0].blocks}-blocks-{'-'.join(map(str, common)) or 'none'}"
        some = tuple(some)
        tasks += [
            Task(f"found-{what}{blocks}-part-{part}-of-{parts}.npy", some, part, parts)
            for part in range(parts)
        ]
    return tasks


def search(task: Task, folder: Path, tests: int, settings: Settings) -> int:
    """Writes the pairs of this part that are nearly the same, as `best_pairs`; returns how many.

    Args:
      folder: of the `Arrays`; the file is put there, too.
      tests: images of lower rank are of test sets, and are compared with no better one; of an image
        near them just the best pair is sure to be there.
    """
    arrays = Arrays(folder)
    entries = _Entries.of(task, arrays, settings.mirrored)
    pairs = _Pairs(entries, arrays, tests, settings)
    for choice in task.choices:
        if choice.has_equal():
            same = np.flatnonzero(entries.sizes > 1)
            pairs.compare(same, same)
        for i, j in hamming.pairs_of(entries.hashes, settings.distance, choice):
            pairs.compare(np.concatenate([i, j]), np.concatenate([j, i]))
    found = pairs.found()
    written = io.BytesIO()
    np.save(written, found, allow_pickle=False)
    write_whole(folder / task.name, written.getvalue())
    return len(found)


def best_pairs(pairs: np.ndarray) -> np.ndarray:
    """u64[n], an image's rank << 32 | that of a better neighbour -> those of the `MOST_ALIKE` best
    neighbours of each image, ascending, each once."""
    pairs = np.unique(pairs)
    images = pairs >> _RANK_BITS
    place = np.arange(len(pairs))
    is_start = np.ones(len(pairs), bool)
    is_start[1:] = images[1:] != images[:-1]
    return pairs[place - np.maximum.accumulate(np.where(is_start, place, 0)) < MOST_ALIKE]


def ranks(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u32[n] each: of the images and of the neighbours of pairs."""
    return (pairs >> _RANK_BITS).astype(np.uint32), pairs.astype(np.uint32)


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
                key = task.choices[0].first_blocks(some, _COMMON) * _FEW_BITS >> np.uint64(32)
                chosen &= key * np.uint64(task.parts) >> np.uint64(32) == task.part
            places = np.flatnonzero(chosen)
            flags = np.full(len(places), is_mirrored)
            yield some[places], first + places, ranks[places], flags


class _Pairs:
    """What was found for the images of some entries."""

    def __init__(self, entries: _Entries, arrays: Arrays, tests: int, settings: Settings):
        self._entries, self._arrays = entries, arrays
        self._tests, self._settings = tests, settings
        self._ranks, self._image = np.unique(entries.rank, return_inverse=True)
        self._limit = self._ranks.copy()  # neighbours from this rank on say nothing new
        self._found, self._held, self._most = [np.zeros(0, np.uint64)], 0, _PAIRS_HELD

    def found(self) -> np.ndarray:
        return best_pairs(np.concatenate(self._found))

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compares all images of a hash with the best of another: places of hashes, i64[n] each."""
        sizes = self._entries.sizes
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
        wanted = entries.rank[others] < self._limit[self._image[mine]]
        wanted &= entries.rank[mine] >= self._tests
        wanted &= ~(entries.is_mirrored[mine] & entries.is_mirrored[others])
        mine, others = mine[wanted], others[wanted]
        for first in range(0, len(mine), _PAIRS_AT_ONCE):
            part = slice(first, first + _PAIRS_AT_ONCE)
            self._look(mine[part], others[part])

    def _look(self, mine: np.ndarray, others: np.ndarray) -> None:
        entries = self._entries
        is_turned = entries.is_mirrored[mine] != entries.is_mirrored[others]
        one, other = (self._arrays.detail[entries.row[some]] for some in (mine, others))
        near = signatures.details(one, other, is_turned) <= self._settings.detail
        mine, others, is_turned = mine[near], others[near], is_turned[near]
        rows = entries.row[mine], entries.row[others]
        one, other = (self._arrays.thumbnail[some] for some in rows)
        one[is_turned] = signatures.mirrored(one[is_turned])
        contrasts = tuple(self._arrays.contrast[some] for some in rows)
        alike = signatures.differences(one, other, contrasts) <= self._settings.difference
        mine, better = mine[alike], entries.rank[others[alike]]
        is_test = better < self._tests
        np.minimum.at(self._limit, self._image[mine[is_test]], better[is_test])
        self._add(entries.rank[mine].astype(np.uint64) << _RANK_BITS | better)

    def _add(self, pairs: np.ndarray) -> None:
        self._found.append(pairs)
        self._held += len(pairs)
        if self._held < self._most:
            return
        pairs = self.found()
        mine, better = ranks(pairs)
        is_full = np.zeros(len(pairs), bool)
        is_full[MOST_ALIKE - 1 :] = mine[MOST_ALIKE - 1 :] == mine[: len(mine) - MOST_ALIKE + 1]
        image = np.searchsorted(self._ranks, mine[is_full])
        self._limit[image] = np.minimum(self._limit[image], better[is_full])
        self._found, self._held = [pairs], len(pairs)
        self._most = 2 * len(pairs) + _PAIRS_HELD


def distances(arrays: Arrays, one: np.ndarray, other: np.ndarray, mirrored: bool) -> np.ndarray:
    """u8[n]: bits in which hashes of rows i64[n] differ, of the images or of one's mirror image."""
    found = np.bitwise_count(arrays.hash[one] ^ arrays.hash[other])
    if mirrored:
        for a, b in ((one, other), (other, one)):
            turned = np.bitwise_count(arrays.hash[a] ^ arrays.mirrored_hash[b])
            found = np.minimum(found, turned)
    return found
