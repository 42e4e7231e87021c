"""Views of labelled data: one random crop, and the classes that the data set gives the image."""

import random

import numpy as np

from input_pipeline.views.shared.crops import Spec, checked_probability, checked_scale, crops_of
from input_pipeline.views.shared.labels import (
    checked,
    checked_max_labels,
    padded,
    spec_of,
    stored_labels,
)


class Views:
    """One crop and the classes that a labelled data set gives the image.

    Args:
      image_size: side of the crop, in pixels.
      num_classes: of the data set.
      multi_label: False reads the record's `label`, True its list `labels`.
      max_labels: length of the padded list of a multi-label set; the first are kept.
      crop_scale: range of the crop's share of the image's area.
      flip_prob: probability of a horizontal flip.

    Raises:
      ValueError: a value is out of range.
    """

    def __init__(
        self,
        image_size: int,
        num_classes: int,
        multi_label: bool = False,
        max_labels: int = 64,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip_prob: float = 0.5,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}; give 1 or more.")
        self.image_size = image_size
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.max_labels = checked_max_labels(max_labels)
        self.crop_scale = checked_scale(crop_scale)
        self.flip_prob = checked_probability(flip_prob)

    def spec(self) -> Spec:
        """name -> (shape, dtype) of one example."""
        if self.multi_label:
            return spec_of(self.image_size, "labels", (self.max_labels,))
        return spec_of(self.image_size, "label", ())

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3]} and "label" i32[] or "labels" i32[K], padded with -1.

        Raises:
          ValueError: the image cannot be decoded, or there is no label, or one out of range.
        """
        (image,) = crops_of(record, [(self.image_size, self.crop_scale)], self.flip_prob, rng)
        if self.multi_label:
            labels = stored_labels(record, self.num_classes)
            return {"image": image, "labels": padded(labels, self.max_labels)}
        if "label" not in record:
            raise ValueError(f"Record {record['id']!r} has no label; use a labelled data set.")
        (label,) = checked([record["label"]], record, self.num_classes)
        return {"image": image, "label": np.int32(label)}

    def texts(self, batch: dict) -> list[list[str]]:
        """The numbers of each example's classes, in one line."""
        rows = batch["labels"] if self.multi_label else batch["label"][:, None]
        return [["class " + ", ".join(str(i) for i in row if i >= 0)] for row in rows]
