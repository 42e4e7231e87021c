"""Source: images with a mask of classes (ADE20K's scene parsing benchmark)."""

import os
from collections.abc import Iterable
from pathlib import Path

from etils import epath

from input_pipeline.checks import unicode
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.classes import label_images

NUM_CLASSES = 150


class Source(label_images.Source):
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
        folders = f"images/{split}", f"annotations/{split}"
        super().__init__(path, *folders, first_class=1, num_classes=NUM_CLASSES)
        self.class_names = _read_names(source_path(path) / "objectInfo150.txt")
        self._split = split

    def identity(self) -> Iterable[str | bytes]:
        """All names, and the sizes of images and masks."""
        return "\n".join(["ade20k", self._split, *self.class_names, *self._names]), self.sizes()


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
