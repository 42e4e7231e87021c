"""Multi-label classification by a trained head (COCO): average precision.

The numbers are those of scikit-learn's `average_precision_score` on logits, which the reference
implementation of CatLIP (arXiv 2404.15653) reports: AP = sum over thresholds of the gain in recall
times the precision; equal scores share a threshold. NaN, which scikit-learn refuses, counts
against the model.
"""

from collections.abc import Iterator

import numpy as np

from evaluators.shared import base
from evaluators.shared.rows import RowMap, map_images, num_outputs
from input_pipeline.checks.fields import labels_of

# Scores looked up at once: 64 MiB of temporary memory.
BLOCK = 2**22


class Evaluator(base.Evaluator):
    """Yields average precisions, and beside each the `_baseline` that knows label frequencies.

    `micro_ap` ranks all (image, class) pairs together. `macro_ap` is the mean over classes, the
    "mAP" of papers; as in scikit-learn, a class that no image has counts as 0. `macro_ap_present`
    leaves such classes out, for heads with more classes than the data, and `num_classes_present`
    says how many are left. `weighted_ap` weights classes by their images. The baseline gives every
    image the same scores, the frequencies of the labels in this data.

    Calls `classify`, see `shared.base`. Every host holds all logits: 4 bytes per image and
    class, 1.6 MB for 5,000 images of COCO, 0.5 GB with a head of 24,320 words.

    Attributes:
      data: its records have `labels`, ids of the head's classes; an image may have none.

    Raises:
      ValueError: the data has no labels, or the method cannot classify.
    """

    needs = ("classify",)

    def __post_init__(self):
        super().__post_init__()
        self._logits = RowMap(self.predict_fns["classify"], self.mesh)
        labels_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a label is no class of the head, or no image has any."""
        num_classes = num_outputs(self.predict_fns["classify"], model, self.preprocess, self.mesh)
        scores, labels = map_images(
            self._logits,
            model,
            self.source,
            self.preprocess,
            self.batch_size,
            lambda record: sorted(set(labels_of(record, num_classes))),
        )
        if not any(labels):
            raise ValueError("No image of this data has a label: there is nothing to find.")
        yield from metrics(scores, labels)


def metrics(scores: np.ndarray, labels: list[list[int]]) -> Iterator[tuple[str, float]]:
    """The evaluator's metrics.

    Args:
      scores: f32[N, C].
      labels: the classes of each image, each once; one image at least has some.
    """
    num_images, num_classes = scores.shape
    rows = np.repeat(np.arange(num_images), [len(own) for own in labels])
    classes = np.array([label for own in labels for label in own], np.int64)
    positive = np.zeros(scores.shape, bool)
    positive[rows, classes] = True
    counts = np.bincount(classes, minlength=num_classes)
    present = np.flatnonzero(counts)
    by_class = np.zeros(num_classes)
    for c in present:
        by_class[c] = average_precision(scores[:, c], positive[:, c])
    frequency = counts / num_images  # the AP of a class whose scores are all equal
    yield "micro_ap", average_precision(scores, positive)
    yield "macro_ap", float(by_class.mean())
    yield "macro_ap_present", float(by_class[present].mean())
    yield "weighted_ap", float(np.average(by_class, weights=counts))
    yield "num_classes_present", len(present)
    yield "micro_ap_baseline", _micro_baseline(counts, num_images)
    yield "macro_ap_baseline", float(frequency.mean())
    yield "macro_ap_present_baseline", float(frequency[present].mean())
    yield "weighted_ap_baseline", float(np.average(frequency, weights=counts))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the precision-recall steps of one ranking.

    A right candidate whose score is NaN is never found, a wrong one is ahead of everything. Only
    the right ones are sorted, so memory hardly grows with the wrong ones.

    Args:
      scores: f32[...].
      positive: bool, of the same shape: the right candidates, one at least.
    """
    # Thresholds: the distinct scores of right candidates, ascending.
    right = scores[positive]
    thresholds, found = np.unique(right[~np.isnan(right)], return_counts=True)
    wrong = np.zeros(len(thresholds) + 1, np.int64)
    flat_scores, flat_positive = scores.reshape(-1), positive.reshape(-1)
    for start in range(0, scores.size, BLOCK):
        block = flat_scores[start : start + BLOCK][~flat_positive[start : start + BLOCK]]
        # NaN is sorted behind all numbers. Slot k: at or above k thresholds, and no more.
        reached = np.searchsorted(thresholds, block, side="right")
        wrong += np.bincount(reached, minlength=len(wrong))
    ahead = np.cumsum(wrong[:0:-1])[::-1]  # wrong candidates at or above each threshold
    true = np.cumsum(found[::-1])[::-1]
    return float(np.sum(found / len(right) * (true / (true + ahead))))


def _micro_baseline(counts: np.ndarray, num_images: int) -> float:
    """Micro AP of scores that are the classes' frequencies: i64[C] positives of each class."""
    levels, classes = np.unique(counts, return_counts=True)
    levels, classes = levels[::-1], classes[::-1]
    found = levels * classes
    precision = np.cumsum(found) / np.cumsum(num_images * classes)
    return float(np.sum(found / found.sum() * precision))
