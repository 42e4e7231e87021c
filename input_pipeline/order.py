"""Which record is example number p of a run: random access to shuffled and mixed orders."""

import functools
import hashlib
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np

# Positions after which an interleaving by weight repeats, at most: weights of more digits are
# rounded to this many parts.
MAX_PERIOD = 100_000


def shuffled(length: int, seed: int):
    """Endless random-access sequence: a permutation of range(length) by (seed, epoch), repeated."""
    return grain.MapDataset.range(length).shuffle(seed=seed).repeat()


class MixedOrder:
    """Order of a mixture by weight: `order[p]` is the record at global position p.

    After any number of positions each component has had its share of them to less than one. Its
    own examples are a permutation by (seed, component, epoch of the component), repeated, so it
    shows no record again before all of its records have been shown.

    Args:
      lengths: records of each component; the mixture numbers them one component after the other.
      weights: of each component, above 0, in any unit.
      seed: of the permutations.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
        self._component, self._rank, self._counts = _interleave(tuple(weights))
        self._first = np.cumsum([0, *lengths[:-1]])
        # Components of one length would otherwise run in one order.
        seeds = (hashlib.sha256(f"{seed}/{number}".encode()) for number in range(len(lengths)))
        self._orders = [
            shuffled(length, int.from_bytes(digest.digest()[:4], "little"))
            for length, digest in zip(lengths, seeds)
        ]

    def __getitem__(self, position: int) -> int:
        period, position = divmod(position, len(self._component))
        component = self._component[position]
        draw = period * int(self._counts[component]) + int(self._rank[position])
        return int(self._first[component]) + int(self._orders[component][draw])


@functools.lru_cache(maxsize=8)  # asked for with every batch
def _interleave(weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One period of a sequence of components in which each has its share.

    Draw j of a component with share s belongs to the positions from floor(j/s) to ceil((j+1)/s)-1;
    taking the earliest end first meets all of them (Tijdeman 1980, the chairman problem), so always
    each component is within one of its share.

    Returns:
      component i64[P] at each position; rank i64[P], its draws before this one in the period;
      counts i64[len(weights)], its draws in a whole period.
    """
    counts = _whole_parts(weights)
    period = sum(counts)
    component, rank = np.zeros((2, period), np.int64)
    drawn = [0] * len(counts)
    waiting = [(0, number) for number in range(len(counts))]  # (first position, component)
    ready: list[tuple[int, int]] = []  # (position that is too late, component)
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            _, number = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(drawn[number] + 1) * period // counts[number]), number))
        _, number = heapq.heappop(ready)
        component[position], rank[position] = number, drawn[number]
        drawn[number] += 1
        heapq.heappush(waiting, (drawn[number] * period // counts[number], number))
    return component, rank, np.array(counts)


def _whole_parts(weights: Sequence[float]) -> list[int]:
    """The weights as the smallest whole numbers of the same proportions; see `MAX_PERIOD`."""
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, as it was written
    scale = math.lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * scale) for weight in exact]
    if sum(parts) // math.gcd(*parts) > MAX_PERIOD:
        # Nothing is rounded away: also the smallest weight keeps its place.
        parts = [max(1, round(part * MAX_PERIOD / sum(parts))) for part in parts]
    divisor = math.gcd(*parts)
    return [part // divisor for part in parts]
