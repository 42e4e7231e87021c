"""Source: Visual7W's pointing questions (arXiv 1511.03416), answered by one of four boxes."""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.images import pillow
from input_pipeline.records import given, naming
from input_pipeline.sources.shared import base, listed
from input_pipeline.sources.shared.listed import text, unique
from input_pipeline.text.boxes import format_boxes, shares

_AT_ONCE = 64  # images that are read together
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
      drop_outside: leave out questions with a box outside their image, or without an area, in place
        of an error. As the file does not say how large images are, all are read for it.

    Raises:
      FileNotFoundError: the file or images are missing.
      ValueError: the file is of another form, or has no such split; as a record is read, a box is
        outside its image.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        split: str,
        drop_outside: bool = False,
    ):
        path, folder = source_path(annotations), source_path(images)
        left_out: Counter[str] = Counter()
        with listed.understood(path, _FORM):
            entries = list(_read(annotation_files.read(path), split))
        if drop_outside:
            entries = list(_inside(entries, folder, left_out))
        with listed.understood(path, _FORM):
            super().__init__("pointing", folder, entries)
        self.left_out = dict(left_out)

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        record = super().record_of(index, *contents)
        with naming(record):
            width, height = pillow.size(contents[0])
            boxes, inside = shares(record.pop("pixels"), width, height)
            if not np.all(inside):
                raise ValueError(
                    f"a box is outside its image of {width}x{height} pixels, or has no area; "
                    "drop_outside=true leaves such questions out"
                )
        choices = [format_boxes(box) for box in boxes]
        return record | {"choices": choices, "answers": [choices[record["answer"]]]}

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Reads the images, too, whose sizes the file does not tell."""
        return base.Source.fields(self, indices)


def _inside(
    entries: list[tuple[str, dict[str, Any]]], folder, left_out: Counter[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Raises FileNotFoundError or ValueError, which names the first record of a broken image."""
    by_image = [list(g) for _, g in itertools.groupby(entries, key=lambda entry: entry[0])]
    for start in range(0, len(by_image), _AT_ONCE):
        some = by_image[start : start + _AT_ONCE]
        read = read_files([folder / group[0][0] for group in some])
        for group, contents in zip(some, read):
            with naming(group[0][1]):
                width, height = pillow.size(given(contents))
            for name, fields in group:
                if shares(fields["pixels"], width, height)[1].all():
                    yield name, fields
                else:
                    left_out["questions with a box outside their images"] += 1


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
            asked = sorted(
                {right, *wrong}, key=lambda box: hashlib.sha256(f"{name} {box}".encode()).digest()
            )
            if missing := [box for box in asked if box not in boxes]:
                raise ValueError(f"question {name}: there is no box {missing[0]}")
            if len(asked) < 2:
                raise ValueError(f"question {name}: there is one box to choose")
            corners = [
                [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
                for box in map(boxes.get, asked)
            ]
            yield (
                image["filename"],
                {
                    "id": name,
                    "question_id": name,
                    "question": text(one["question"], f"question {name}:"),
                    "answer": asked.index(right),
                    "pixels": corners,
                    "split": split,
                },
            )
