"""Source: COCO's object annotations as labels, several per image."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.listing import check_images
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import base


class Source(base.OfFiles):
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
      ValueError: the JSON is of another format, has no image, an image or a category twice, or
        annotations of images or categories that it does not list.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        self._folder, path = os.fspath(source_path(images)), source_path(annotations)
        try:
            self.class_names, self._examples = _read(annotation_files.read(path))
            check_images(self._folder, (name for _, name, _ in self._examples))
        except (KeyError, TypeError, ValueError) as error:
            reason = annotation_files.reason(error)
            raise ValueError(
                f"{path} is no file of object annotations ({reason}): it should hold COCO's "
                "{images: [...], annotations: [{image_id, category_id}], categories: [{id, name}]}."
            ) from None
        if not self._examples:
            raise ValueError(f"{path} has no image.")

    def __len__(self) -> int:
        return len(self._examples)

    def paths(self, index: int) -> Sequence[str]:
        """The image."""
        return [os.path.join(self._folder, self._examples[index][1])]

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        id_, _, labels = self._examples[index]
        return {
            "id": id_,
            "image": contents[0],
            "captions": {},
            "labels": list(labels),
        }

    def identity(self) -> Iterable[str | bytes]:
        """Names and labels, and the images' sizes."""
        return json.dumps(["coco_labels", self.class_names, self._examples]), self.sizes()


def _read(content: dict[str, Any]) -> tuple[list[str], list[tuple[str, str, list[int]]]]:
    """Class names, and (id, file name, labels) of every image."""
    categories = annotation_files.unique(content["categories"], "categories")
    ordered = sorted(categories, key=lambda id_: (not id_.isdecimal(), id_.zfill(20)))
    class_of = {id_: label for label, id_ in enumerate(ordered)}
    images = annotation_files.unique(content["images"], "images")
    labels: dict[str, set[int]] = {id_: set() for id_ in images}
    for id_, annotation in annotation_files.by_image(content["annotations"], images):
        category = annotation_files.identity(annotation["category_id"])
        if category not in class_of:
            raise ValueError(f"an annotation of image {id_} has the unlisted category {category}")
        labels[id_].add(class_of[category])
    return [str(categories[id_]["name"]) for id_ in ordered], [
        (id_, image["file_name"], sorted(labels[id_])) for id_, image in images.items()
    ]
