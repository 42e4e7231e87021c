"""All pairs of 64-bit hashes within a Hamming distance, by multi-index hashing (arXiv 1307.2982).

The bits are cut into `distance + equal` blocks. Two hashes within the distance differ in at most
`distance` blocks, so at least `equal` are the same: for each choice of `equal` blocks, hashes are
sorted by these, and compared where these agree. A pair belongs to the first choice that finds it.
Where many agree, as hashes of pictures do more than random ones, the bits that are left are cut in
their turn. Nothing is missed, whatever the number of blocks.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BITS = 64
_RUN = 1024  # hashes that agree and are compared each with each
_BATCH = 1 << 18  # pairs
# Microseconds: a hash in a sort, and a comparison. What they are wrong by costs time alone.
_SORT, _COMPARE = 0.25, 0.011

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Choice:
    """Some of the blocks that the lowest `free` bits are cut into.

    Attributes:
      free: bits in which hashes may differ.
      blocks: number of blocks, of nearly equal width, from the highest bit on.
      equal: numbers of those that agree, ascending; none for all pairs.
    """

    free: int
    blocks: int
    equal: tuple[int, ...]

    def arrange(self, hashes: np.ndarray) -> np.ndarray:
        """u64[n] -> u64[n], with the blocks that agree moved to the top of the free bits."""
        others = [block for block in range(self.blocks) if block not in self.equal]
        if self.free == BITS:
            arranged = np.zeros_like(hashes)
        else:
            arranged = hashes >> np.uint64(self.free) << np.uint64(self.free)
        end = self.free
        for block in (*self.equal, *others):
            width = self._edge(block + 1) - self._edge(block)
            end -= width
            arranged |= self._block(hashes, block) << np.uint64(end)
        return arranged

    def first_blocks(self, hashes: np.ndarray, count: int) -> np.ndarray:
        """u64[n]: what hashes are in the first `count` of the blocks that agree."""
        key = np.zeros_like(hashes)
        for block in self.equal[:count]:
            key <<= np.uint64(self._edge(block + 1) - self._edge(block))
            key |= self._block(hashes, block)
        return key

    def has_equal(self) -> bool:
        """Whether two hashes that are the same belong to this choice: it is the first."""
        return self.equal == tuple(range(len(self.equal)))

    def rest(self) -> int:
        """Number of free bits that are in no block that agrees."""
        return self.free - sum(self._edge(b + 1) - self._edge(b) for b in self.equal)

    def is_first(self, changed: np.ndarray) -> np.ndarray:
        """bool[n]: no earlier choice has a pair that differs in these bits, u64[n], as this has."""
        first = np.ones(len(changed), bool)
        for block in range(self.equal[-1] if self.equal else 0):
            if block not in self.equal:
                first &= self._block(changed, block) != 0
        return first

    def _edge(self, block: int) -> int:
        return self.free * block // self.blocks

    def _block(self, hashes: np.ndarray, block: int) -> np.ndarray:
        width = self._edge(block + 1) - self._edge(block)
        mask = np.uint64((1 << width) - 1)
        return hashes >> np.uint64(self.free - self._edge(block + 1)) & mask


def choices(count: int, distance: int, free: int = BITS) -> list[Choice]:
    """Those that together find every pair of `count` hashes: the number of blocks is a matter of
    cost alone."""

    def cost(equal):
        agreeing = count / 2 ** (free * equal / max(1, distance + equal))
        sort = _SORT if equal else 0.0
        return math.comb(distance + equal, equal) * count * (sort + agreeing / 2 * _COMPARE)

    equal = min(range(min(8, max(0, free - distance)) + 1), key=cost)
    chosen = itertools.combinations(range(distance + equal), equal)
    return [Choice(free, distance + equal, blocks) for blocks in chosen]


def pairs(hashes: np.ndarray, distance: int, free: int = BITS) -> Pairs:
    """Yields the pairs of hashes u64[n], all different, within a distance: places i, j i64[m] of
    these, each pair once."""
    for choice in choices(len(hashes), distance, free):
        yield from pairs_of(hashes, distance, choice)


def pairs_of(hashes: np.ndarray, distance: int, choice: Choice) -> Pairs:
    """As `pairs`, those that belong to one choice; all hashes are equal above its free bits."""
    if not choice.equal:
        ends = np.full(len(hashes), len(hashes))
        yield from _batched(_of_runs(hashes, ends, distance))
        return
    arranged = choice.arrange(hashes)
    order = np.argsort(arranged)
    arranged = arranged[order]
    rest = choice.rest()
    key = arranged >> np.uint64(rest)
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    lengths = np.diff(starts, append=len(key))
    del key
    ends = np.repeat(starts + lengths, lengths)
    ends[np.repeat(lengths > _RUN, lengths)] = 0  # for the others
    found = itertools.chain(
        _of_runs(arranged, ends, distance),
        (
            (start + i, start + j)
            for start, length in zip(starts[lengths > _RUN], lengths[lengths > _RUN])
            for i, j in pairs(arranged[start : start + length], distance, rest)
        ),
    )
    for i, j in _batched(found):
        i, j = order[i], order[j]
        first = choice.is_first(hashes[i] ^ hashes[j])
        if first.any():
            yield i[first], j[first]


def _of_runs(hashes: np.ndarray, ends: np.ndarray, distance: int) -> Pairs:
    """Compares each hash with those behind it up to `ends`, i64[n]."""
    left = np.arange(len(hashes))
    for offset in range(1, len(hashes)):
        left = left[left + offset < ends[left]]
        if not len(left):
            break
        close = np.bitwise_count(hashes[left] ^ hashes[left + offset]) <= distance
        if close.any():
            yield left[close], left[close] + offset


def _batched(found: Pairs) -> Pairs:
    kept, count = [], 0
    for pair in found:
        kept.append(pair)
        count += len(pair[0])
        if count >= _BATCH:
            yield tuple(map(np.concatenate, zip(*kept)))
            kept, count = [], 0
    if kept:
        yield tuple(map(np.concatenate, zip(*kept)))
