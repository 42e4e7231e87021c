"""Views with masks: one random crop of an image and of the classes of its pixels."""

import dataclasses
import random

import cv2
import numpy as np

from input_pipeline.checks.fields import mask_of
from input_pipeline.images import crops
from input_pipeline.records import naming
from input_pipeline.views.shared import base
from input_pipeline.views.shared.crops import check_probability

# A crop that one class fills is drawn again so often; then it is taken as it is.
MAX_CROPS = 10


@dataclasses.dataclass(kw_only=True, eq=False)
class Views(base.Views):
    """A random scale, a random flip and a random crop (arXiv 2404.15653, appendix).

    The image keeps its aspect ratio. Where it is smaller than the crop, black pixels without a
    label are added at the right and below. Sizes are relative to that of the crop, so that a tiny
    run does what a large one does; the published ones are 256..768 and 1024 pixels for 512.

    Attributes:
      num_classes: of the data set.
      short_side: range of the scaled image's short side, in crops.
      max_long_side: the most that the long side may become, in crops; it goes before `short_side`.
      max_class_share: a crop of which one class has more is drawn again. Pixels without a label
        count as a class here.
      flip_prob: probability of a horizontal flip.

    Raises:
      ValueError: a value is out of range.
    """

    num_classes: int
    short_side: tuple[float, float] = (0.5, 1.5)
    max_long_side: float = 2.0
    max_class_share: float = 0.75
    flip_prob: float = 0.5

    def __post_init__(self):
        if not 1 <= self.num_classes <= np.iinfo(np.int16).max:
            raise ValueError(f"num_classes={self.num_classes} is out of range.")
        low, high = self.short_side
        if not 0 < low <= high or self.max_long_side <= 0:
            raise ValueError(
                f"short_side={self.short_side} and max_long_side={self.max_long_side}: give a "
                "range above 0 and a number above 0, in crops."
            )
        if not 0 < self.max_class_share <= 1:
            raise ValueError(f"max_class_share={self.max_class_share}: give a share in (0, 1].")
        check_probability(self.flip_prob)
        self.short_side_px = round(low * self.image_size), round(high * self.image_size)
        self.max_long_side_px = self.max_long_side * self.image_size

    def spec(self) -> base.Spec:
        s = self.image_size
        return {"image": ((s, s, 3), np.dtype(np.uint8)), "mask": ((s, s), np.dtype(np.int16))}

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3], "mask": i16[S, S]}; 0 is no label, c + 1 is class c.

        Raises:
          ValueError: the image cannot be decoded, or the mask is missing or does not fit.
        """
        with naming(record, ": leave it out of the data."):
            image = crops.decode(record["image"])
        mask = mask_of(record, self.num_classes)
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"Record {record['id']!r}: the mask of an image of {image.shape[:2]} pixels is of "
                f"that shape, not of {mask.shape}."
            )
        mask = mask.astype(np.int16)
        height, width = image.shape[:2]
        short_side = rng.randint(*self.short_side_px)
        scale = min(short_side / min(height, width), self.max_long_side_px / max(height, width))
        height, width = max(1, int(height * scale)), max(1, int(width * scale))
        mask = resize_mask(mask, height, width)
        image = resize_image(image, height, width)
        if rng.random() < self.flip_prob:
            image, mask = image[:, ::-1], mask[:, ::-1]
        rows, columns = self._draw_crop(mask, rng)
        example = {"image": image[rows, columns], "mask": mask[rows, columns]}
        return {name: self._padded(x) for name, x in example.items()}

    def _draw_crop(self, mask: np.ndarray, rng: random.Random) -> tuple[slice, slice]:
        spare = [max(0, side - self.image_size) for side in mask.shape]
        for _ in range(MAX_CROPS):
            top, left = (rng.randint(0, n) for n in spare)
            crop = slice(top, top + self.image_size), slice(left, left + self.image_size)
            counts = np.bincount(self._padded(mask[crop]).ravel())
            if counts.max() <= self.max_class_share * counts.sum() or not any(spare):
                break
        return crop

    def _padded(self, x: np.ndarray) -> np.ndarray:
        """[h, w, ...] -> [S, S, ...], zeros at the right and below."""
        padded = np.zeros((self.image_size, self.image_size, *x.shape[2:]), x.dtype)
        padded[: x.shape[0], : x.shape[1]] = x
        return padded

    def texts(self, batch: dict) -> list[list[str]]:
        """The numbers and shares of each example's classes, the largest first, in one line."""
        return [[_shares(mask)] for mask in batch["mask"]]


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """u8[H, W, 3] -> u8[height, width, 3]: means of areas to shrink, bicubic to enlarge."""
    shrink = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation)


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W] -> [height, width]: each pixel as the one in which its centre lies."""
    rows, columns = (
        (2 * np.arange(size) + 1) * source // (2 * size)
        for size, source in zip((height, width), mask.shape)
    )
    return mask[rows[:, None], columns]


def _shares(mask: np.ndarray) -> str:
    counts = np.bincount(mask.ravel())
    return ", ".join(
        f"{f'class {value - 1}' if value else 'no label'} {counts[value] / mask.size:.0%}"
        for value in np.argsort(-counts, kind="stable")
        if counts[value]
    )
