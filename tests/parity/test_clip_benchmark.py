"""clip_benchmark's metrics on the same scores (its package, and torch, are needed to run this)."""

import numpy as np
import pytest

from evaluators.labels import average_precision
from evaluators.shared.metrics import mean_per_class_recall
from evaluators.shared.ranking import hits, rank_of_label
from tests.evaluators.pairs.toy_matrix import retrieval_metrics

pytest.importorskip("clip_benchmark", reason="the package clip-benchmark is not installed")
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("seed", range(3))
def test_classification(seed):
    import sklearn.metrics
    from clip_benchmark.metrics import zeroshot_classification as theirs

    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(300, 12)).astype(np.float32)
    labels = rng.integers(0, 11, 300)
    scores[np.arange(300), labels] += 1
    rank = np.asarray(rank_of_label(scores, labels))
    right = hits(rank, 1, 12)
    assert theirs.balanced_accuracy_score is sklearn.metrics.balanced_accuracy_score
    first = sklearn.metrics.balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert mean_per_class_recall(right, labels) == pytest.approx(first)
    # Its own sum: `accuracy` takes an array of one number for a number, which numpy 2.4 refuses.
    order = torch.tensor(scores).topk(5, 1, True, True)[1].numpy()
    for k in (1, 5):
        expected = (order[:, :k] == labels[:, None]).any(axis=1).mean()
        assert hits(rank, k, 12).mean() == pytest.approx(expected)

    several = rng.random((300, 12)) < 0.2
    several[:, 3] = False  # as a class that no image has
    expected = theirs.average_precision_per_class(torch.tensor(scores), torch.tensor(several))
    found = dict(
        average_precision.metrics(scores, [np.flatnonzero(row).tolist() for row in several])
    )
    assert found["macro_ap"] == pytest.approx(expected.mean().item(), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_retrieval(seed):
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k

    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.arange(12), rng.integers(0, 12, 20)]))
    scores = rng.normal(size=(12, 32)).astype(np.float32)
    scores[owner, np.arange(32)] += 1
    found = retrieval_metrics(scores, owner)
    right = torch.tensor(owner == np.arange(12)[:, None])
    for direction, matrix, positive in (
        ("image_to_text", torch.tensor(scores), right),
        ("text_to_image", torch.tensor(scores.T), right.T),
    ):
        for k in (1, 5, 10):
            expected = (recall_at_k(matrix, positive, k) > 0).float().mean().item()
            assert found[f"{direction}_R@{k}"] == pytest.approx(expected)
