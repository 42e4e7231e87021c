"""Multi-index hashing finds what comparing each with each finds, and each pair once."""

import itertools

import numpy as np
import pytest

from input_pipeline.duplicates import hamming
from input_pipeline.duplicates.hamming import Choice


def clustered(seed, count):
    """u64[n], all different: random ones, others a few bits from them, and a crowd in few bits."""
    rng = np.random.default_rng(seed)
    far = rng.integers(0, 2**64, count, np.uint64)
    near = far.copy()
    for _ in range(rng.integers(1, 9)):
        near ^= np.uint64(1) << rng.integers(0, 64, count, np.uint64)
    crowd = far[0] ^ rng.integers(0, 2**7, count, np.uint64)
    return rng.permutation(np.unique(np.concatenate([far, near, crowd])))


def all_within(hashes, distance):
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    return set(zip(*(places.tolist() for places in np.nonzero(np.triu(near, 1)))))


def ordered(found):
    return [(min(pair), max(pair)) for i, j in found for pair in zip(i.tolist(), j.tolist())]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("distance", [0, 1, 3, 8])
@pytest.mark.parametrize("equal", [0, 1, 2])
def test_every_pair_once_whatever_the_blocks(monkeypatch, seed, distance, equal):
    monkeypatch.setattr(hamming, "_RUN", 16)  # crowds are cut in their turn
    hashes = clustered(seed, 40)
    chosen = itertools.combinations(range(distance + equal), equal)
    found = [
        pair
        for blocks in chosen
        for pair in ordered(
            hamming.pairs_of(hashes, distance, Choice(64, distance + equal, blocks))
        )
    ]
    assert len(found) == len(set(found))
    assert set(found) == all_within(hashes, distance)
    assert set(ordered(hamming.pairs(hashes, distance))) == set(found)


def test_bits_are_moved_and_none_is_lost():
    hashes = np.uint64(1) << np.arange(64, dtype=np.uint64)
    for free, blocks, equal in ((64, 7, (1, 4)), (41, 5, (0, 2)), (9, 9, (8,))):
        choice = Choice(free, blocks, equal)
        arranged = choice.arrange(hashes)
        assert sorted(arranged.tolist()) == hashes.tolist()
        assert (arranged[free:] == hashes[free:]).all()
        assert (np.bitwise_count(arranged) == 1).all()


def test_more_hashes_are_cut_into_more_blocks():
    numbers = [len(hamming.choices(10**power, 6)[0].equal) for power in (2, 4, 6, 8, 9)]
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-1] > 2
    assert hamming.choices(10**8, 8)[0].rest() < 64 - 20
