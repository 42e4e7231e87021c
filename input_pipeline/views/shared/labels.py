"""Label ids of an example: checked, and padded to one length."""

import dataclasses

import numpy as np

from input_pipeline.views.shared.base import Spec
from input_pipeline.views.shared.crops import CropViews

PADDING = -1


@dataclasses.dataclass(kw_only=True, eq=False)
class LabelViews(CropViews):
    """The base of views with one crop and a list of classes.

    Attributes:
      max_labels: length of the padded list; of more labels the first are kept.
    """

    max_labels: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.max_labels < 1:
            raise ValueError(f"max_labels={self.max_labels}; give 1 or more.")

    def spec(self) -> Spec:
        return super().spec() | {"labels": ((self.max_labels,), np.dtype(np.int32))}

    def padded(self, labels: list[int]) -> np.ndarray:
        """i32[max_labels], -1 behind the labels."""
        padded = np.full(self.max_labels, PADDING, np.int32)
        padded[: len(labels)] = labels[: self.max_labels]
        return padded
