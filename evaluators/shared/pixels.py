"""What evaluators of label maps have in common: one class for each pixel, and what is counted."""

from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np

NO_CLASS = -1
# Masks are padded to multiples of this, so that few sizes have to be compiled.
PAD = 256
# Rows of a mask whose scores are on a device at once.
BLOCK_ROWS = 32


def sole_highest(scores, axis: int):
    """i32 without `axis`: where the highest score is; NO_CLASS where no score is above all others,
    by a tie or NaN."""
    highest = ~(scores < scores.max(axis=axis, keepdims=True))  # so is every NaN
    return jnp.where(highest.sum(axis=axis) == 1, highest.argmax(axis=axis), NO_CLASS)


def metrics(
    intersection: np.ndarray, predicted: np.ndarray, target: np.ndarray
) -> Iterator[tuple[str, float]]:
    """The evaluator's metrics from pixel counts i64[C] over the data set, see `count_pixels`.

    Raises:
      ValueError: no pixel counts.
    """
    if not target.any():
        raise ValueError("Every pixel of these masks is 0, which does not count.")
    present = target > 0
    union = predicted + target - intersection
    most_frequent = float(target.max() / target.sum())
    yield "mean_iou", float(np.mean(intersection[present] / union[present]))
    yield "pixel_accuracy", float(intersection.sum() / target.sum())
    yield "mean_iou_baseline", most_frequent / int(present.sum())
    yield "pixel_accuracy_baseline", most_frequent
    yield "num_classes_present", int(present.sum())


def count_pixels(mask: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class where the mask is not 0.

    Args:
      mask: integers [H, W], 0 or 1 + class.
      labels: integers [H, W], class or NO_CLASS.

    Returns:
      i64[3, C]: of the class in both, in `labels`, in `mask`.
    """
    counted = mask > 0
    true, given = mask[counted].astype(np.int64) - 1, labels[counted].astype(np.int64)
    sets = (true[true == given], given[given != NO_CLASS], true)
    return np.stack([np.bincount(values, minlength=num_classes) for values in sets])


def sparse(counts: np.ndarray) -> list[list[int]]:
    """i64[3, C] as JSON data: the classes that have pixels, and their counts."""
    classes = np.flatnonzero(counts.any(axis=0))
    return [classes.tolist(), *counts[:, classes].tolist()]


def summed(counts: Iterable[list[list[int]]], num_classes: int) -> np.ndarray:
    """i64[3, C]: the sum of what `sparse` made."""
    total = np.zeros((3, num_classes), np.int64)
    for classes, *sums in counts:
        total[:, np.array(classes, int)] += np.array(sums, np.int64)
    return total
