"""Fields of records that are classes: there, and what they should be."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def label_of(record: Mapping[str, Any], num_classes: int | None = None) -> int:
    """The record's label, below `num_classes` if that is known.

    Raises:
      ValueError: it has none, or one that is no class.
    """
    if "label" not in record:
        raise ValueError(f"Record {record['id']!r} has no label; use a labelled data set.")
    [label] = _checked([record["label"]], record, num_classes)
    return label


def labels_of(record: Mapping[str, Any], num_classes: int | None = None) -> list[int]:
    """The record's list of labels, all below `num_classes` if that is known.

    Raises:
      ValueError: it has none, or one that is no class.
    """
    if "labels" not in record:
        raise ValueError(
            f"Record {record['id']!r} has no labels; prepare the data with --labels, use a "
            "multi-label data set, or mine them from captions (source mined_labels; in training "
            "views.stored=False)."
        )
    return _checked(record["labels"], record, num_classes)


def mask_of(record: Mapping[str, Any], num_classes: int | None = None) -> np.ndarray:
    """The record's mask, integers [H, W]: 0 does not count, else 1 + class.

    Raises:
      ValueError: it has none, it is something else, or it has a class not below `num_classes`.
    """
    if record.get("mask") is None:
        raise ValueError(f"Record {record['id']!r} has no mask; use data with masks.")
    mask = np.asarray(record["mask"])
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer) or not mask.size:
        raise ValueError(
            f"Record {record['id']!r}: a mask is an array of integers [H, W], not of {mask.dtype} "
            f"{mask.shape}."
        )
    if num_classes is not None and not 0 <= mask.min() <= mask.max() <= num_classes:
        raise ValueError(
            f"The mask of record {record['id']!r} has values {mask.min()} to {mask.max()}, but "
            f"there are classes 1 to {num_classes} (0 does not count)."
        )
    return mask


def _checked(
    labels: Iterable[int], record: Mapping[str, Any], num_classes: int | None
) -> list[int]:
    labels = [int(label) for label in labels]
    for label in labels:
        if num_classes is not None and not 0 <= label < num_classes:
            raise ValueError(
                f"Record {record['id']!r} has label {label}, which is none of {num_classes} "
                "classes; check the data, and the class names or the vocabulary it came with."
            )
    return labels
