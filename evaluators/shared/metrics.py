"""Metrics of classification and of choice, of plain arrays: what DataComp's 38 tasks report.

Each is the number that the published evaluation gives (DataComp, arXiv 2304.14108, which takes
them from clip_benchmark, scikit-learn and WILDS); where scores tie or are NaN, the model loses.
"""

import numpy as np


def mean_per_class_recall(right: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that have an image of the share of their images that are right.

    Args:
      right: bool[N], which images are classified right.
      labels: i[N], their classes.
    """
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 over the classes that have an image, all alike (WILDS' "F1-macro_all").

    A class that is predicted and has no image costs the others precision, but is none of the mean.

    Args:
      predicted: i[N], the class that each image was given.
      labels: i[N], its class.
    """
    scores = []
    for label in np.unique(labels):
        found, there = predicted == label, labels == label
        scores.append(2 * np.sum(found & there) / (found.sum() + there.sum()))
    return float(np.mean(scores))


def worst_group(right: np.ndarray, groups: np.ndarray) -> float:
    """The smallest share of right images in a group that has one: the worst region or income.

    Args:
      right: bool[N].
      groups: i[N], the group of each image.
    """
    return float(min(right[groups == group].mean() for group in np.unique(groups)))


def jaccard_of_best(scores: np.ndarray, right: np.ndarray) -> float:
    """|A and B| / |A or B| of the n right candidates and of the n that score best.

    Args:
      scores: f[C], of each candidate.
      right: bool[C], n of them, one at least.
    """
    n = int(right.sum())
    scores = np.where(np.isnan(scores), np.where(right, -np.inf, np.inf), scores)
    best = np.lexsort((right, -scores))[:n]  # wrong ones first among equals
    hits = int(right[best].sum())
    return hits / (2 * n - hits)
