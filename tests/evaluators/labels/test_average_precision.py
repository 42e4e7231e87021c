"""Average precision: equality with scikit-learn, its rule for absent classes, and the baselines."""

import warnings

import numpy as np
import pytest

from evaluators.labels import average_precision as ap
from tests.evaluators.shared import toy


def case(kind, num_images=60, num_classes=9, seed=0):
    """f32[N, C] scores and bool[N, C] labels."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_images, num_classes)).astype(np.float32)
    positive = rng.random(scores.shape) < rng.uniform(0.05, 0.6, num_classes)
    if kind == "ties":
        scores = np.round(scores * 2) / 2
    elif kind == "constant":
        scores[:] = 3
    elif kind == "perfect":
        scores = np.float32(positive)
    elif kind == "absent":
        positive[:, [2, 5]] = False
    elif kind == "infinite":
        scores[rng.random(scores.shape) < 0.2] = np.inf
        scores[rng.random(scores.shape) < 0.2] = -np.inf
    return scores, positive


def lists(positive):
    return [np.flatnonzero(row).tolist() for row in positive]


def scikit_learn(positive, scores, average):
    metrics = pytest.importorskip("sklearn.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes that no image has
        # It refuses infinities; only the order counts.
        order = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
        return metrics.average_precision_score(positive, order, average=average)


@pytest.mark.parametrize("kind", ["plain", "ties", "constant", "perfect", "absent", "infinite"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(kind, seed, monkeypatch):
    monkeypatch.setattr(ap, "BLOCK", 17)
    scores, positive = case(kind, seed=seed)
    values = dict(ap.metrics(scores, lists(positive)))
    frequency = np.tile(positive.mean(axis=0), (len(scores), 1))
    for average in ("micro", "macro", "weighted"):
        expected = scikit_learn(positive, scores, average)
        assert values[f"{average}_ap"] == pytest.approx(expected, abs=1e-12)
        expected = scikit_learn(positive, frequency, average)
        assert values[f"{average}_ap_baseline"] == pytest.approx(expected, abs=1e-12)
    assert values["macro_ap_baseline"] == pytest.approx(positive.mean())


def test_by_hand():
    scores, positive = np.float32([4, 3, 2, 1]), np.array([1, 0, 1, 0], bool)
    assert ap.average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    # The second right one shares its threshold with a wrong one.
    tied = np.float32([4, 2, 2, 1])
    assert ap.average_precision(tied, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert ap.average_precision(-scores, positive) == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_classes_that_no_image_has():
    scores, positive = case("absent")
    everything = dict(ap.metrics(scores, lists(positive)))
    kept = [c for c in range(9) if c not in (2, 5)]
    rest = dict(ap.metrics(scores[:, kept], lists(positive[:, kept])))
    assert everything["num_classes_present"] == rest["num_classes_present"] == 7
    assert everything["macro_ap_present"] == pytest.approx(rest["macro_ap"])
    assert everything["macro_ap"] == pytest.approx(rest["macro_ap"] * 7 / 9)
    assert everything["weighted_ap"] == pytest.approx(rest["weighted_ap"])
    assert everything["macro_ap_present_baseline"] == pytest.approx(positive[:, kept].mean())


def test_nan_counts_against_the_model():
    nan = np.nan
    right = np.array([1, 0, 1, 0], bool)
    # A wrong one is ahead of all; a right one is never found.
    assert ap.average_precision(np.float32([4, nan, 3, 1]), right) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )
    assert ap.average_precision(np.float32([4, 3, nan, 1]), right) == pytest.approx(1 / 2)
    assert ap.average_precision(np.full(4, nan, np.float32), right) == 0


def source(labels):
    return toy.ToySource({"caption": [["?"]] * len(labels)}, labels=labels)


def test_the_evaluator_ranks_what_the_head_says():
    scores, positive = case("plain", num_images=30)
    model = {"logits": scores}
    labels = [own[::-1] * 2 for own in lists(positive)]  # order and repetition say nothing
    values = toy.evaluate("average_precision", source(labels), model, batch_size=7)
    assert any(not own for own in labels)  # images without a label take part
    for average in ("micro", "macro", "weighted"):
        expected = scikit_learn(positive, scores, average)
        assert values[f"{average}_ap"] == pytest.approx(expected, abs=1e-12)


def test_bad_input_is_explained():
    model = {"logits": np.zeros((8, 6), np.float32)}
    with pytest.raises(ValueError, match="'toy-1' has label 6, which is none of 6 classes"):
        toy.evaluate("average_precision", source([[0], [6, 2]]), model)
    with pytest.raises(ValueError, match="'toy-0' has label -1"):
        toy.evaluate("average_precision", source([[-1]]), model)
    with pytest.raises(ValueError, match="No image of this data has a label"):
        toy.evaluate("average_precision", source([[], []]), model)
    with pytest.raises(ValueError, match="'toy-0' has no labels"):
        toy.evaluate("average_precision", toy.ToySource({"caption": [["?"]]}, [1]), model)
