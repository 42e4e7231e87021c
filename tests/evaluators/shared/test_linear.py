"""Ridge and logistic regression are those of scikit-learn."""

import tracemalloc

import jax.numpy as jnp
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


def test_a_class_in_each_tenth_row_is_not_left_out_whole(monkeypatch):
    """Labels in turn, as made sets have them: each class must be among those that are fitted."""
    labels = np.arange(200) % 10
    features = np.eye(10, dtype=np.float32)[labels]
    fitted = []
    fit = linear._Logistic.__init__
    monkeypatch.setattr(linear, "_STEPS", 1)
    monkeypatch.setattr(
        linear._Logistic,
        "__init__",
        lambda self, x, y, rows, *more: fitted.append(set(y[rows])) or fit(self, x, y, rows, *more),
    )
    linear.logistic(features, labels, 10, toy.mesh())
    assert fitted[0] == fitted[2] == set(range(10)) and len(fitted[1]) > 1


def test_no_more_logits_at_once_than_said(monkeypatch):
    """Blocks of rows, of which the last is not whole, have the loss and the slope of all."""
    features, labels = clusters(37)
    rows, weights = np.arange(1, 37), np.random.default_rng(0).normal(size=(7, 4))
    whole = linear._Logistic(features, labels, rows, 4, toy.mesh()).loss(weights)
    monkeypatch.setattr(linear, "_LOGITS_PER_DEVICE", 20)
    part = linear._Logistic(features, labels, rows, 4, toy.mesh())
    seen = []
    matmul = jnp.matmul
    monkeypatch.setattr(jnp, "matmul", lambda a, b, **k: seen.append(a.shape) or matmul(a, b, **k))
    loss, slope = part.loss(weights)
    assert seen[0] == (5, 6)
    logits = features[rows] @ weights[:-1] + weights[-1]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert loss == pytest.approx(-logs[np.arange(36), labels[rows]].mean(), rel=1e-5)
    assert loss == pytest.approx(whole[0], rel=1e-5)
    np.testing.assert_allclose(slope, whole[1], atol=1e-6)


def test_ridge_makes_no_copy_of_the_features(monkeypatch):
    features, labels = clusters(3000)
    expected = linear.ridge(features, labels, 4)
    monkeypatch.setattr(linear, "_ROWS", 100)
    tracemalloc.start()
    found = linear.ridge(features, labels, 4)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert most < 3 * features.nbytes  # 72 kB; in float64 alone it were twice that, and its like


def test_the_others_follow_process_0(monkeypatch):
    """They compute the loss where it is asked for, as often, and end with its weights."""
    features, labels = clusters(40)
    fit = linear._Logistic(features, labels, np.arange(40), 4, toy.mesh())
    sent, computed = [], []
    monkeypatch.setattr(
        linear, "_from_first", lambda *said: sent.append((said[0].copy(), said[1])) or said
    )
    found = fit(1e-3)
    loss = fit.loss
    monkeypatch.setattr(fit, "loss", lambda weights: computed.append(weights) or loss(weights))
    heard = iter(sent)
    monkeypatch.setattr(linear, "_from_first", lambda *_: next(heard))
    monkeypatch.setattr(linear.jax, "process_index", lambda: 1)
    assert np.array_equal(fit(1e-3), found)
    assert len(computed) == len(sent) - 1 > 3
