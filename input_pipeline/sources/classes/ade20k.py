"""Source: images with a mask of classes (ADE20K's scene parsing benchmark)."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from input_pipeline.checks import unicode
from input_pipeline.files.listing import check_images, names_in
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import base

NUM_CLASSES = 150


class Source(base.OfFiles):
    """The images `PATH/images/SPLIT/*.jpg` with their masks `PATH/annotations/SPLIT/*.png`.

    A record's `mask` u8[H, W] is the file's: 0 where nothing is labelled, 1 + class elsewhere. Its
    id is the name of the file without ".jpg".

    Attributes:
      class_names: the first of the names that `PATH/objectInfo150.txt`, which comes with the data,
        gives each of the 150 classes; without that file their numbers in the masks, "1" to "150".

    Args:
      path: the folder ADEChallengeData2016.
      split: "training" or "validation".

    Raises:
      FileNotFoundError: there is no such split, or masks are missing.
      ValueError: the split has no image, or the list of classes is of another format.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        root = source_path(path)
        self._images, self._masks = (root / kind / split for kind in ("images", "annotations"))
        if not self._images.is_dir():
            raise FileNotFoundError(
                f"Folder {self._images} does not exist. path should be the folder "
                "ADEChallengeData2016, and split training or validation."
            )
        found = map(os.path.splitext, names_in(self._images))
        self._names = sorted(name for name, ending in found if ending == ".jpg")
        if not self._names:
            raise ValueError(f"{self._images} has no .jpg file.")
        check_images(self._masks, (f"{name}.png" for name in self._names))
        self.class_names = _read_names(root / "objectInfo150.txt")
        self._split = split

    def __len__(self) -> int:
        return len(self._names)

    def paths(self, index: int) -> Sequence[str]:
        """Image and mask."""
        name = self._names[index]
        image, mask = (self._images, f"{name}.jpg"), (self._masks, f"{name}.png")
        return os.path.join(*image), os.path.join(*mask)

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        """The record of image and mask.

        Raises:
          ValueError: its mask is no image of one channel with values up to 150.
        """
        image, mask = contents
        return {
            "id": unicode.escaped(self._names[index]),
            "image": image,
            "captions": {},
            "mask": _read_mask(self.paths(index)[1], mask),
        }

    def identity(self) -> Iterable[str | bytes]:
        """All names, and the sizes of images and masks."""
        return "\n".join(["ade20k", self._split, *self.class_names, *self._names]), self.sizes()


def _read_mask(path: str, data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            mask = np.array(image)
    except Exception as error:  # Pillow raises many types on corrupt bytes.
        raise ValueError(f"Mask {path} cannot be read: {error}") from error
    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.max() > NUM_CLASSES:
        raise ValueError(
            f"Mask {path} is no mask of the scene parsing benchmark: it should have one channel "
            f"with values up to {NUM_CLASSES}, not {mask.dtype} {mask.shape} up to {mask.max()}."
        )
    return mask


def _read_names(path: Path | epath.Path) -> list[str]:
    """Names from a table with the columns Idx, Ratio, Train, Val, Stuff and Name."""
    if not path.exists():
        return [str(1 + label) for label in range(NUM_CLASSES)]
    rows = [line.split("\t") for line in unicode.read_lines(path)]
    names = {row[0].strip(): row[-1] for row in rows if len(row) > 1}
    try:
        texts = [names[str(1 + label)] for label in range(NUM_CLASSES)]
    except KeyError as error:
        raise ValueError(
            f"{path} is no list of {NUM_CLASSES} classes: no line begins with number {error} and a "
            "tab."
        ) from None
    return [text.replace(";", ",").split(",")[0].strip() for text in texts]
