"""Views of labelled data: one random crop, and the classes that the data set gives the image."""

import dataclasses
import random

import numpy as np

from input_pipeline.checks.fields import label_of, labels_of
from input_pipeline.views.shared.base import Spec
from input_pipeline.views.shared.crops import CropViews
from input_pipeline.views.shared.labels import LabelViews


@dataclasses.dataclass(kw_only=True, eq=False)
class Views(LabelViews):
    """One crop and the classes that a labelled data set gives the image.

    Attributes:
      num_classes: of the data set.
      multi_label: False reads the record's `label`, True its list `labels`.

    Raises:
      ValueError: a value is out of range.
    """

    num_classes: int
    multi_label: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes}; give 1 or more.")

    def spec(self) -> Spec:
        if self.multi_label:
            return super().spec()
        return CropViews.spec(self) | {"label": ((), np.dtype(np.int32))}

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3]} and "label" i32[] or "labels" i32[K], padded with -1.

        Raises:
          ValueError: the image cannot be decoded, or there is no label, or one out of range.
        """
        image = self.crop(record, rng)
        if self.multi_label:
            labels = labels_of(record, self.num_classes)
            return {"image": image, "labels": self.padded(labels)}
        return {"image": image, "label": np.int32(label_of(record, self.num_classes))}

    def texts(self, batch: dict) -> list[list[str]]:
        """The numbers of each example's classes, in one line."""
        rows = batch["labels"] if self.multi_label else batch["label"][:, None]
        return [["class " + ", ".join(str(i) for i in row if i >= 0)] for row in rows]
