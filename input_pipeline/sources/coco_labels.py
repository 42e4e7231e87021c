"""Source: COCO's object annotations as labels, several per image."""

import hashlib
import json
import operator
import os
from pathlib import Path
from typing import Any

from input_pipeline.files import check_images


class Source:
    """One record per image, in the order of the JSON; ids are COCO's image numbers.

    A record's `labels` are the categories of its annotations, crowds included: ascending, each
    once, numbered from 0 in the order of the category ids (COCO's 80 ids have gaps). Images without
    an annotation have none.

    Attributes:
      class_names: of the categories.

    Args:
      annotations: `instances_*.json`.
      images: folder that the file names in it start from.

    Raises:
      FileNotFoundError: the JSON or some images are missing.
      ValueError: the JSON is of another format, or has no image.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        self._folder, path = Path(images), Path(annotations)
        if not path.is_file():
            raise FileNotFoundError(f"Annotation file {path} does not exist.")
        try:
            self.class_names, self._examples = _read(json.loads(path.read_bytes()))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no file of object annotations ({error!r}): it should hold COCO's "
                "{images: [...], annotations: [{image_id, category_id}], categories: [{id, name}]}."
            ) from None
        if not self._examples:
            raise ValueError(f"{path} has no image.")
        check_images(self._folder, (name for _, name, _ in self._examples))
        content = json.dumps(["coco_labels", self.class_names, self._examples])
        self._fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record at `index`. Raises IndexError unless it is in [0, len)."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is out of range: there are {len(self)} images.")
        id_, name, labels = self._examples[index]
        return {
            "id": id_,
            "image": (self._folder / name).read_bytes(),
            "captions": {},
            "labels": list(labels),
        }

    def fingerprint(self) -> str:
        """16 hex digits of names and labels; the images are not read."""
        return self._fingerprint


def _read(content: dict[str, Any]) -> tuple[list[str], list[tuple[str, str, list[int]]]]:
    """Class names, and (id, file name, labels) of every image."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: label for label, category in enumerate(categories)}
    labels: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        labels[annotation["image_id"]].add(class_of[annotation["category_id"]])
    return [str(category["name"]) for category in categories], [
        (str(image["id"]), image["file_name"], sorted(labels[image["id"]]))
        for image in content["images"]
    ]
