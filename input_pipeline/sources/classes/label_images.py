"""Source: images with a mask of classes, each an image of numbers (VOC, COCO-Stuff, Cityscapes)."""

import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.checks import unicode
from input_pipeline.files import listing
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import base

UNLABELLED = 255  # as data sets for segmentation write it


class Source(base.OfFiles):
    """The images `PATH/IMAGES/NAME.jpg` with the masks `PATH/MASKS/NAME.png`, by their names.

    A record's `mask` u8[H, W] is 0 where a pixel does not count, and 1 + class elsewhere. Its id is
    NAME.

    Args:
      path: the folder of the data set.
      images, masks: folders below it; a NAME is in them, or in folders in them.
      image_ending, mask_ending: what stands behind NAME in the names of files.
      names: a text file below `path` with a NAME in each line, for some of the images.
      first_class: the value of class 0 in the files; values below it do not count, nor does 255.
      num_classes: None takes all values.

    Raises:
      FileNotFoundError: there is no such folder or file, or masks are missing.
      ValueError: there is no image.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        images: str,
        masks: str,
        image_ending: str = ".jpg",
        mask_ending: str = ".png",
        names: str | None = None,
        first_class: int = 0,
        num_classes: int | None = None,
    ):
        root = source_path(path)
        self._images, self._masks = root / images, root / masks
        self._endings = image_ending, mask_ending
        self._first, self._num_classes = first_class, num_classes
        if not self._images.is_dir():
            raise FileNotFoundError(
                f"Folder {self._images} does not exist. path should be the folder that {images!r} "
                f"and {masks!r} are in."
            )
        self._names = self._found() if names is None else _lines(root / names)
        if not self._names:
            raise ValueError(f"{self._images} has no {image_ending} file.")
        if names is not None:
            listing.check_images(self._images, (f"{n}{image_ending}" for n in self._names))
        listing.check_images(self._masks, (f"{n}{mask_ending}" for n in self._names))

    def _found(self) -> list[str]:
        start, ending = os.fspath(self._images), self._endings[0]
        for pattern in ("*", os.path.join("*", "*")):
            if files := listing.find(os.path.join(start, pattern + ending)):
                return sorted(os.fspath(f)[len(start) + 1 : -len(ending)] for f in files)
        return []

    def __len__(self) -> int:
        return len(self._names)

    def paths(self, index: int) -> Sequence[str]:
        """Image and mask."""
        folders = self._images, self._masks
        return [
            os.path.join(folder, self._names[index] + ending)
            for folder, ending in zip(folders, self._endings)
        ]

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        """The record of image and mask.

        Raises:
          ValueError: its mask is no image of one channel of 8 bits, or has other values.
        """
        image, mask = contents
        return {
            "id": unicode.escaped(self._names[index]),
            "image": image,
            "captions": {},
            "mask": self._read_mask(self.paths(index)[1], mask),
        }

    def _read_mask(self, path: str, data: bytes) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(data)) as image:
                values = np.array(image)
        except Exception as error:  # Pillow raises many types on corrupt bytes.
            raise ValueError(f"Mask {path} cannot be read: {error}") from error
        labelled = values[values != UNLABELLED]
        most = UNLABELLED - 1
        if self._num_classes is not None:
            most = self._first + self._num_classes - 1
        if values.dtype != np.uint8 or values.ndim != 2 or labelled.max(initial=0) > most:
            raise ValueError(
                f"Mask {path} is no mask of this data set: it should have one channel of 8 bits "
                f"with values up to {most}, not {values.dtype} {values.shape} up to {values.max()}."
            )
        counts = (values >= self._first) & (values != UNLABELLED)
        return np.where(counts, values - np.uint8(self._first) + np.uint8(1), np.uint8(0))

    def identity(self) -> Iterable[str | bytes]:
        """All names, and the sizes of images and masks."""
        which = f"{self._first} {self._num_classes}"
        return "\n".join(["label_images", which, *self._names]), self.sizes()


def _lines(path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(f"File of names {path} does not exist.")
    return [line.strip() for line in unicode.read_lines(path) if line.strip()]
