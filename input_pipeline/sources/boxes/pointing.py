"""Source: Visual7W's pointing questions (arXiv 1511.03416), answered by one of four boxes."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.ranges import source_path
from input_pipeline.images import pillow
from input_pipeline.records import naming
from input_pipeline.sources.shared import base, listed
from input_pipeline.sources.shared.listed import text, unique
from input_pipeline.text.boxes import format_boxes, shares

_FORM = (
    "Visual7W's {images: [{filename, split, qa_pairs: [{qa_id, question, answer, "
    "multiple_choices}]}], boxes: [{box_id, x, y, width, height}]}"
)


class Source(listed.Listed):
    """A record for each question: `question`, `question_id`, `split`; `choices`, its boxes as text
    (see `text.boxes`), in an order that says nothing; `answer`, the place of the right one, and
    `answers`, its text, which a model learns to write.

    Args:
      annotations: dataset_v7w_pointing.json.
      images: directory of its images, v7w_NUMBER.jpg.
      split: train, val or test.

    Raises:
      FileNotFoundError: the file or images are missing.
      ValueError: the file is of another form, or has no such split; as a record is read, a box is
        outside its image.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike, split: str):
        path = source_path(annotations)
        with listed.understood(path, _FORM):
            entries = _read(annotation_files.read(path), split)
            super().__init__("pointing", source_path(images), entries)

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        record = super().record_of(index, *contents)
        with naming(record):
            width, height = pillow.size(contents[0])
            boxes, inside = shares(record.pop("pixels"), width, height)
            if not np.all(inside):
                raise ValueError(
                    f"a box is outside its image of {width}x{height} pixels, or has no area"
                )
        choices = [format_boxes(box) for box in boxes]
        return record | {"choices": choices, "answers": [choices[record["answer"]]]}

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Reads the images, too, whose sizes the file does not tell."""
        return base.Source.fields(self, indices)


def _read(content: dict[str, Any], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    known = sorted({image["split"] for image in content["images"]})
    if split not in known:
        raise ValueError(f"it has no split {split!r}, but {', '.join(known)}")
    boxes = unique(content["boxes"], "box_id")
    for image in content["images"]:
        for one in image["qa_pairs"] if image["split"] == split else ():
            name = annotation_files.identity(one["qa_id"])
            right = annotation_files.identity(one["answer"])
            wrong = [annotation_files.identity(box) for box in one["multiple_choices"]]
            given = sorted(
                {right, *wrong}, key=lambda box: hashlib.sha256(f"{name} {box}".encode()).digest()
            )
            if missing := [box for box in given if box not in boxes]:
                raise ValueError(f"question {name}: there is no box {missing[0]}")
            if len(given) < 2:
                raise ValueError(f"question {name}: there is one box to choose")
            corners = [
                [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
                for box in map(boxes.get, given)
            ]
            yield (
                image["filename"],
                {
                    "id": name,
                    "question_id": name,
                    "question": text(one["question"], f"question {name}:"),
                    "answer": given.index(right),
                    "pixels": corners,
                    "split": split,
                },
            )
