"""What views with crops do: crop a record's image, draw its captions, check their arguments."""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from input_pipeline.images import crops
from input_pipeline.records import naming
from input_pipeline.text import captions
from input_pipeline.views.shared.base import Spec, Views


@dataclasses.dataclass(kw_only=True, eq=False)
class CropViews(Views):
    """The base of views with one random crop, of `image_size`.

    Attributes:
      crop_scale: range of the crop's share of the image's area; None squashes the whole image.
      flip_prob: probability of a horizontal flip.

    Raises:
      ValueError: a value is out of range.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip_prob: float = 0.5

    def __post_init__(self):
        if self.crop_scale is not None:
            self.crop_scale = checked_scale(self.crop_scale)
        check_probability(self.flip_prob)

    def spec(self) -> Spec:
        """That of the crop."""
        return {"image": ((self.image_size, self.image_size, 3), np.dtype(np.uint8))}

    def crop(self, record: dict, rng: random.Random) -> np.ndarray:
        """u8[S, S, 3], see `crops_of`."""
        [image] = crops_of(record, [(self.image_size, self.crop_scale)], self.flip_prob, rng)
        return image


def crops_of(
    record: dict,
    views: Sequence[tuple[int, tuple[float, float] | None]],
    flip_prob: float,
    rng: random.Random,
    out: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Random crops of a record's image, see `crops.random_crops`; an error names the record."""
    advice = ". Drop broken images by preparing the data with `python -m input_pipeline.prepare`."
    with naming(record, advice):
        return crops.random_crops(record["image"], views, flip_prob, rng, out)


def sample_captions(record: dict, mode: str, k: int, rng: random.Random) -> list[str]:
    """See `captions.sample_captions`; an error names the record."""
    with naming(record):
        return captions.sample_captions(record["captions"], mode, k, rng)


def checked_scale(scale: tuple[float, float]) -> tuple[float, float]:
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"A crop scale is a range of area shares within (0, 1], got {scale}.")
    return low, high


def check_probability(flip_prob: float) -> None:
    if not 0 <= flip_prob <= 1:
        raise ValueError(f"flip_prob is a probability, got {flip_prob}.")
