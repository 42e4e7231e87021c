"""DataComp's metrics are those of scikit-learn, and of the packages that DataComp calls."""

import sys
from unittest import mock

import numpy as np
import pytest
import sklearn.metrics

from evaluators.shared import metrics

CLASSES = 9


def case(seed, count=200):
    """Logits, labels and groups: class 8 has no image, but is predicted; group 3 is empty."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(8, count, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02])
    logits = rng.normal(size=(count, CLASSES)).astype(np.float32)
    logits[np.arange(count), labels] += rng.random(count) * 3
    groups = rng.choice([0, 1, 2, 4, 5], count)
    return logits, labels, groups


@pytest.mark.parametrize("seed", range(4))
def test_recall_and_f1_are_those_of_scikit_learn(seed):
    logits, labels, _ = case(seed)
    predicted = logits.argmax(axis=1)
    assert CLASSES - 1 in predicted
    expected = sklearn.metrics.recall_score(
        labels, predicted, average="macro", labels=np.unique(labels)
    )
    found = metrics.mean_per_class_recall(predicted == labels, labels)
    assert found == pytest.approx(expected)
    expected = sklearn.metrics.f1_score(
        labels, predicted, average="macro", labels=np.unique(labels)
    )
    assert metrics.macro_f1(predicted, labels) == pytest.approx(expected)
    assert expected != pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))


def test_the_worst_group_is_one_that_has_images():
    right = np.array([1, 1, 0, 1, 0, 0, 1, 1], bool)
    groups = np.array([0, 0, 0, 2, 2, 2, 7, 7])
    assert metrics.worst_group(right, groups) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_jaccard_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(5, 13))
    right = np.isin(np.arange(size), rng.choice(size, int(rng.integers(1, size)), replace=False))
    scores = rng.normal(size=size)
    chosen = np.isin(np.arange(size), np.argsort(scores)[-right.sum() :])
    expected = sklearn.metrics.jaccard_score(right, chosen)
    assert metrics.jaccard_of_best(scores, right) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_score_for_all_chooses_what_is_wrong(value):
    right = np.array([True, False, True, False, False])
    assert metrics.jaccard_of_best(np.full(5, value), right) == 0
    assert metrics.jaccard_of_best(np.full(2, value), np.array([True, True])) == 1  # all are right


@pytest.mark.parametrize("seed", range(3))
def test_wilds_says_the_same(seed, monkeypatch):
    """DataComp's calls of WILDS, on predictions, on the first five, and with regions."""
    pytest.importorskip("wilds", reason="the package wilds is not installed")
    torch = pytest.importorskip("torch")
    # WILDS imports it for boxes; it is often built for another torch.
    for name in ("", ".ops", ".ops.boxes", ".models", ".models.detection"):
        monkeypatch.setitem(sys.modules, f"torchvision{name}", mock.MagicMock())
    monkeypatch.setitem(sys.modules, "torchvision.models.detection._utils", mock.MagicMock())
    import wilds.common.utils

    def average(values, groups, count):  # as DataComp, in the place of what needs torch_scatter
        counts = wilds.common.utils.get_counts(groups, count)
        return torch.zeros(count).scatter_(0, groups, values, reduce="add") / counts, counts

    monkeypatch.setattr(wilds.common.utils, "avg_over_groups", average)
    from wilds.common.metrics import metric as their_module
    from wilds.common.metrics.all_metrics import F1, Accuracy

    monkeypatch.setattr(their_module, "avg_over_groups", average)
    logits, labels, groups = case(seed)
    predicted = logits.argmax(axis=1)
    first_five = np.argsort(-logits, axis=1)[:, :5]
    y_pred, y_true, g = (torch.tensor(x) for x in (predicted, labels, groups))

    class TopK(Accuracy):
        def _compute_element_wise(self, y_pred, y_true):
            return (y_pred == y_true.unsqueeze(-1)).any(-1).float()

    f1 = F1(average="macro").compute(y_pred, y_true)["F1-macro_all"]
    assert metrics.macro_f1(predicted, labels) == pytest.approx(f1)
    for metric, chosen, right in (
        (Accuracy(), y_pred, predicted == labels),
        (TopK(), torch.tensor(first_five), (first_five == labels[:, None]).any(axis=1)),
    ):
        found = metric.compute_group_wise(chosen, y_true, g, int(groups.max()) + 1)
        expected = float(found[metric.worst_group_metric_field])
        assert metrics.worst_group(right, groups) == pytest.approx(expected)
