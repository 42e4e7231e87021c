"""Source: SugarCrepe (arXiv 2306.14610), images of COCO val2017 with a true and a wrong caption."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.listing import check_images, names_in
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import base


class Source(base.OfFiles):
    """A record for each pair of captions: `captions["caption"]`, `hard_negatives` of one string,
    and `kind`, the name of the file it is from ("swap_att").

    Args:
      annotations: directory of the published files, add_att.json to swap_obj.json, or one of them.
        Each is {number: {filename, caption, negative_caption}}.
      images: directory of COCO's val2017.

    Raises:
      FileNotFoundError: there are no such files, or images are missing.
      ValueError: a file is something else.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        self._folder, path = os.fspath(source_path(images)), source_path(annotations)
        names = sorted(name for name in names_in(path) if name.endswith(".json"))
        files = [path / name for name in names] or [path]
        self._examples = [(file.stem, *row) for file in files for row in _read(file)]
        if not self._examples:
            raise ValueError(f"{path} has no pair of captions.")
        check_images(self._folder, (name for _, _, name, *_ in self._examples))

    def __len__(self) -> int:
        return len(self._examples)

    def paths(self, index: int) -> Sequence[str]:
        """The image."""
        return [os.path.join(self._folder, self._examples[index][2])]

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        kind, number, _, caption, negative = self._examples[index]
        return {
            "id": f"{kind}/{number}",
            "image": contents[0],
            "captions": {"caption": [caption]},
            "hard_negatives": [negative],
            "kind": kind,
        }

    def identity(self) -> Iterable[str | bytes]:
        """Names and captions, and the images' sizes."""
        return "sugarcrepe", json.dumps(self._examples), self.sizes()


def _read(file) -> list[tuple[str, str, str, str]]:
    """(number, file name, caption, wrong caption) of each pair."""
    try:
        rows = [
            (number, entry["filename"], entry["caption"], entry["negative_caption"])
            for number, entry in annotation_files.read(file).items()
        ]
        if not all(isinstance(text, str) for row in rows for text in row):
            raise TypeError("a caption or a file name is no text")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no file of SugarCrepe ({annotation_files.reason(error)}): it should hold "
            "{number: {filename, caption, negative_caption}}."
        ) from None
    return rows
