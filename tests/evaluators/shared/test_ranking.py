"""Ranking rules, and what must not win."""

import numpy as np

from evaluators.shared import ranking


def rank(scores, positive, weight=None):
    weight = np.ones(len(scores[0]), np.int32) if weight is None else weight
    found = ranking.ranks(np.float32(scores), np.array(positive, bool), np.int32(weight))
    return np.asarray(found).tolist()


def test_ranks_agree_with_sorting():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 20))
    positive = rng.random((50, 20)) < 0.2
    positive[:, 7] = True
    expected = [
        min(np.flatnonzero(np.isin(np.argsort(-row), np.flatnonzero(right))))
        for row, right in zip(scores, positive)
    ]
    assert rank(scores, positive) == expected


def test_ties_and_nan_count_against_the_model():
    nan, inf = np.nan, np.inf
    assert rank([[1, 1, 1, 1]], [[0, 0, 1, 0]]) == [3]
    assert rank([[2, 1, 2, 1]], [[1, 0, 0, 1]]) == [1]
    assert rank([[nan, 0, 1, nan]], [[0, 0, 1, 0]]) == [2]
    assert rank([[nan, 5, 1, 2]], [[1, 0, 1, 0]]) == [2]
    assert rank([[-inf, -inf, 0, 0]], [[1, 0, 0, 0]]) == [3]
    # No usable score at all: behind everything, even where there is nothing to be behind of.
    assert rank([[nan, 0, 1, 2]], [[1, 0, 0, 0]]) == [4]
    assert rank([[nan]], [[1]]) == [1]
    assert not ranking.hits(np.array([4]), 10, 4)[0]
    assert ranking.hits(np.array([3]), 10, 4)[0]


def test_a_column_counts_as_often_as_it_stands_for():
    assert rank([[3, 2, 1]], [[0, 0, 1]], weight=[4, 2, 1]) == [6]
