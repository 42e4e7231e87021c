"""Source: a folder of images and one JSON of their captions (COCO, Flickr30k)."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.listing import check_images
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import base


class Source(base.OfFiles):
    """One record per image, with all its captions, in the order in which the JSON names the images.

    Two formats are told apart by their contents: COCO's `captions_*.json` (`images`, and
    `annotations` with `image_id` and `caption`), whose records have COCO's image number as id; and
    the list of ALBEF and Karpathy's splits, `{"image": path, "caption": text or list of texts}`, in
    which an image may occur several times, and whose records have the path as id. Images without a
    caption are left out.

    Args:
      annotations: the JSON file.
      images: folder that the file names in it start from.
      caption_field: the name under which records hold the captions.

    Raises:
      FileNotFoundError: the JSON or some images are missing.
      ValueError: the JSON is of neither format, has no caption, an image twice, or annotations of
        images that it does not list.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        caption_field: str = "caption",
    ):
        self._folder, self._field = os.fspath(source_path(images)), caption_field
        path = source_path(annotations)
        try:
            content = annotation_files.read(path)
            read = _read_list if isinstance(content, list) else _read_coco
            # (id, file name, captions)
            self._examples = [example for example in read(content) if example[2]]
            check_images(self._folder, (name for _, name, _ in self._examples))
        except (KeyError, TypeError, ValueError) as error:
            reason = annotation_files.reason(error)
            raise ValueError(
                f"{path} is no caption file ({reason}): it should hold COCO's {{images: [...], "
                "annotations: [{image_id, caption}]}, or a list of {image, caption}."
            ) from None
        if not self._examples:
            raise ValueError(f"{path} has no caption.")

    def __len__(self) -> int:
        return len(self._examples)

    def paths(self, index: int) -> Sequence[str]:
        """The image."""
        return [os.path.join(self._folder, self._examples[index][1])]

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        id_, _, captions = self._examples[index]
        return {
            "id": id_,
            "image": contents[0],
            "captions": {self._field: list(captions)},
        }

    def identity(self) -> Iterable[str | bytes]:
        """Names and captions, and the images' sizes."""
        return f"coco {self._field}", json.dumps(self._examples), self.sizes()


def _read_coco(content: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    images = annotation_files.unique(content["images"], "images")
    captions: dict[str, list[str]] = {id_: [] for id_ in images}
    for id_, annotation in annotation_files.by_image(content["annotations"], images):
        captions[id_] += _texts(annotation["caption"])
    return [(id_, image["file_name"], captions[id_]) for id_, image in images.items()]


def _read_list(content: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    captions: dict[str, list[str]] = {}
    for entry in content:
        captions.setdefault(entry["image"], []).extend(_texts(entry["caption"]))
    return [(name, name, texts) for name, texts in captions.items()]


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"caption {value!r} is no text")
    return [text.strip() for text in texts if text.strip()]
