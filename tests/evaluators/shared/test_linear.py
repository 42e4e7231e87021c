"""Ridge and logistic regression are those of scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV

from evaluators.shared import linear
from tests.evaluators.shared import toy


def clusters(count, classes=4, width=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    features = rng.normal(size=(classes, width))[labels] + 0.9 * rng.normal(size=(count, width))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), labels


@pytest.mark.parametrize("count, width", [(200, 6), (40, 6), (12, 30)])
def test_ridge_is_that_of_scikit_learn(count, width):
    features, labels = clusters(count, width=width)
    weights = linear.ridge(features, labels, 4)
    theirs = RidgeClassifierCV(alphas=linear.RIDGE_PENALTIES).fit(
        features.astype(np.float64), labels
    )
    np.testing.assert_allclose(weights[:-1], theirs.coef_.T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(weights[-1], theirs.intercept_, rtol=1e-3, atol=1e-5)


def test_one_image_of_each_class_and_classes_without_any():
    features, labels = np.eye(3, 5, dtype=np.float32), np.array([0, 2, 4])
    weights = linear.ridge(features, labels, 6)
    scores = features @ weights[:-1] + weights[-1]
    assert weights.shape == (6, 6) and scores.argmax(axis=1).tolist() == [0, 2, 4]


def test_logistic_is_that_of_scikit_learn(monkeypatch):
    features, labels = clusters(101)
    monkeypatch.setattr(linear, "LOGISTIC_PENALTIES", (1e-3,))
    weights = linear.logistic(features, labels, 4, toy.mesh())
    theirs = LogisticRegression(C=1 / (1e-3 * len(labels)), tol=1e-8, max_iter=1000)
    theirs.fit(features, labels)
    probabilities = np.exp(features @ weights[:-1] + weights[-1])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, theirs.predict_proba(features), atol=2e-3)


def test_the_penalty_is_the_one_that_does_best_on_what_is_left_out():
    """Labels that are noise ask for a large one; separable ones do not."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(300, 20)).astype(np.float32)
    weights = linear.ridge(noise, rng.integers(0, 2, 300), 2)
    clear = linear.ridge(noise, (noise[:, 0] > 0).astype(int), 2)
    assert np.abs(weights[:-1]).max() < 0.2 < np.abs(clear[0]).max()
