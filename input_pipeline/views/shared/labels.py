"""Label ids of an example: checked, and padded to one length."""

import numpy as np

from input_pipeline.views.shared.crops import Spec

PADDING = -1


def spec_of(image_size: int, name: str, shape: tuple[int, ...]) -> Spec:
    image = ((image_size, image_size, 3), np.dtype(np.uint8))
    return {"image": image, name: (shape, np.dtype(np.int32))}


def stored_labels(record: dict, num_classes: int) -> list[int]:
    if "labels" not in record:
        raise ValueError(
            f"Record {record['id']!r} has no stored labels; prepare the data with --labels, use a "
            "labelled data set, or mine them from captions (views.stored=False)."
        )
    return checked(record["labels"], record, num_classes)


def checked(labels: list[int], record: dict, num_classes: int) -> list[int]:
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise ValueError(
            f"Record {record['id']!r} has label {wrong[0]}, but there are {num_classes} classes; "
            "the data were prepared with another vocabulary or class list."
        )
    return labels


def padded(labels: list[int], length: int) -> np.ndarray:
    padded = np.full(length, PADDING, np.int32)
    padded[: len(labels[:length])] = labels[:length]
    return padded


def checked_max_labels(max_labels: int) -> int:
    if max_labels < 1:
        raise ValueError(f"max_labels={max_labels}; give 1 or more.")
    return max_labels
