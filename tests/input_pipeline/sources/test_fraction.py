"""`fraction` keeps the same records everywhere, and smaller fractions are parts of larger ones."""

import itertools
import pickle

import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.sources import make_source

# Of 1,000 records, at a fraction of 0.01.
KEPT = [196, 295, 472, 558, 663, 689, 710, 963, 975, 976, 992]


def scenes(fraction=None, size=1000):
    return make_source("scenes", fraction=fraction, size=size, image_size=32)


def ids(source):
    return [source[i]["id"] for i in range(len(source))]


def test_the_hash_is_splitmix64():
    """First output for the seed of the published test vectors, and for 0."""
    found = sources._mix(np.array([1234567, 0], np.uint64))
    assert found.tolist() == [6457827717110365317, 0xE220A8397B1DCDAF]


def test_the_records_are_fixed_and_in_order():
    """Written down: a change would give other records to everybody's runs."""
    kept = [int(i.rpartition("-")[2]) for i in ids(scenes(0.01))]
    assert kept == KEPT
    assert scenes(0.01)[2]["image"] == scenes()[KEPT[2]]["image"]


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_fractions_are_nested_and_of_the_right_size(size):
    kept = [sources._kept(size, fraction) for fraction in (0.001, 0.01, 0.1, 0.5, 1.0)]
    for part, whole in itertools.pairwise(kept):
        assert np.isin(part, whole).all()
    np.testing.assert_array_equal(kept[-1], np.arange(size))
    for fraction, part in zip((0.001, 0.01, 0.1, 0.5), kept):
        deviation = np.sqrt(size * fraction * (1 - fraction))
        assert abs(len(part) - size * fraction) < 4 * deviation


def test_a_longer_source_keeps_what_a_shorter_one_kept():
    np.testing.assert_array_equal(
        sources._kept(5000, 0.1)[: len(sources._kept(3000, 0.1))], sources._kept(3000, 0.1)
    )


def test_the_fingerprint_tells_fractions_and_sources_apart():
    found = [s.fingerprint() for s in (scenes(), scenes(0.1), scenes(0.2), scenes(0.1, 999))]
    assert len(set(found)) == 4
    assert scenes(0.1).fingerprint() == found[1]
    assert all(len(f) == 16 and int(f, 16) >= 0 for f in found)


def test_attributes_are_those_of_the_source():
    assert scenes(0.1).class_names == scenes().class_names
    assert not hasattr(scenes(0.1), "no_such_attribute")


def test_pickling():
    source = scenes(0.05, 100)
    copy = pickle.loads(pickle.dumps(source))
    assert ids(copy) == ids(source)
    assert copy.fingerprint() == source.fingerprint()
    assert copy.class_names == source.class_names


@pytest.mark.parametrize("index", [-1, 10**6])
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range"):
        scenes(0.1, 100)[index]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, True, float("nan")])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"fraction=.*in \(0, 1\]"):
        scenes(fraction)


def test_nothing_left():
    with pytest.raises(ValueError, match=r"fraction=1e-09 leaves none of 1,000 records"):
        scenes(1e-9)
