"""Flat paths: round trips, splitting, and what `differences` says."""

import jax
import numpy as np

from big_vlp import trees

TREE = {"b": {"y": np.zeros(2), "x": np.ones((3, 1))}, "a": np.zeros(())}


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def test_flat_paths_are_sorted_and_come_back():
    flat = trees.flatten(TREE)
    assert list(flat) == ["a", "b/x", "b/y"]
    assert flat["b/x"] is TREE["b"]["x"]
    assert jax.tree.structure(trees.unflatten(flat)) == jax.tree.structure(TREE)


def test_split_and_merge_are_inverse():
    for keep in (lambda p: p.endswith("x"), lambda p: True, lambda p: False):
        kept, others = trees.split(TREE, keep)
        assert [p for p in trees.flatten(TREE) if keep(p)] == list(trees.flatten(kept))
        merged = trees.merge(kept, others)
        assert trees.flatten(merged).keys() == trees.flatten(TREE).keys()
        assert merged["b"]["x"] is TREE["b"]["x"]
    assert trees.split(TREE, lambda p: True)[1] == {}
    assert trees.split({}, lambda p: True) == ({}, {})


def test_differences_name_every_path():
    expected = {"a": shape(), "b": {"x": shape(3, 1), "y": shape(2)}}
    assert trees.differences(expected, TREE) == []
    found = {"a": shape(1), "b": {"x": shape(3, 1)}, "c": {"z": shape(4)}}
    assert trees.differences(expected, found) == [
        "missing: b/y (2,)",
        "unexpected: c/z (4,)",
        "wrong shape: a is (1,), should be ()",
    ]


def test_statistics_are_a_part_of_their_own():
    statistics = {"batch_stats": {"tower": {"mean": np.ones(2)}}}
    parameters, found = trees.split_statistics({**TREE, **statistics})
    assert trees.flatten(parameters).keys() == trees.flatten(TREE).keys()
    assert found == statistics
    assert trees.split_statistics(TREE)[1] == {}
    assert trees.merge({}, statistics) == trees.merge(statistics, {}) == statistics
