"""What a detector found in images, from its JSON files.

Three layouts, told apart by their contents (docs/corpora.md has examples):

- `{IMAGE: [BOX, ...]}` or `{IMAGE: {"size": [width, height], "boxes": [BOX, ...]}}`, in JSON Lines
  `{"id": IMAGE, "size": ..., "boxes": ...}`. With a size boxes are in pixels of it, without in
  shares of the sides. A BOX is `{"label": ..., "box": [x0, y0, x1, y1], "score": ...}`; "phrase" is
  another word for "label". A detector that was asked for a caption's phrases may say which:
  `"span": [start, end]` in characters, and `"caption"`, the text, where an image has several.
- COCO's: `images` (id, width, height), `categories` (id, name) and `annotations` (image_id, bbox
  [x, y, width, height], category_id or "label", score).
- a list of COCO results, which are such annotations alone; images and categories are in another
  file.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from input_pipeline.checks import unicode
from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.annotations import identity
from input_pipeline.files.ranges import open_file
from input_pipeline.text.boxes import OVERHANG

_SHARES = 2.0  # above it coordinates are no shares of anything


class Detection(NamedTuple):
    """One box.

    Attributes:
      label: what is in it, to the detector.
      box: (x0, y0, x1, y1) in shares of the image's sides.
      score: 1 where the file has none.
      span: place in `caption` of the phrase that it is of, in characters; or None.
      caption: None for the image's only one.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float
    span: tuple[int, int] | None = None
    caption: str | None = None


def read(
    path: Path | epath.Path, annotations: Path | epath.Path | None = None
) -> Iterator[tuple[str, list[Detection], list[str]]]:
    """Yields (id of an image, its detections, what is wrong with each box that is left out); an id
    may come again.

    Args:
      path: a .json or .jsonl file.
      annotations: COCO file with the images and categories that a list of results refers to.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is malformed, or more than half of its boxes are; the message names it, and
        an image.
    """
    total, broken, first = 0, 0, ""
    for image, size, boxes in _entries(path, annotations):
        if not isinstance(boxes, list):
            raise ValueError(f"{path}: image {image!r}: its boxes are no list.")
        found, reasons = [], []
        for number, entry in enumerate(boxes):
            try:
                found += _detection(size, entry)
            except _BrokenBoxError as error:
                reasons.append(error.reason)
                first = first or f"image {image!r}, box {number}: {error}"
        total, broken = total + len(boxes), broken + len(reasons)
        yield image, found, reasons
    if broken > total / 2:
        raise ValueError(f"{path}: {broken} of {total} boxes are malformed, the first: {first}.")


class _BrokenBoxError(ValueError):
    """A box cannot be used: for what kind of reason, to be counted, and what is there."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


_Entry = tuple[str, Any, Any]  # id, size or None, boxes


def _entries(path, annotations) -> Iterable[_Entry]:
    if path.suffix == ".jsonl":
        return _lines(path)
    try:
        content = annotation_files.read(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"Boxes file {path} does not exist.") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON, or cut off: {error}.") from None
    try:
        if isinstance(content, list):
            if annotations is None:
                raise ValueError(
                    "a list of results has neither the images' sizes nor the categories' names: "
                    "give the COCO file that they refer to with --annotations"
                )
            coco = annotation_files.read(annotations)
            return list(_coco({**coco, "annotations": content}))
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            return list(_coco(content))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = annotation_files.reason(error)
        raise ValueError(f"{path} holds no boxes ({reason}).") from None
    return [
        (image, entry.get("size"), entry.get("boxes"))
        if isinstance(entry, dict)
        else (image, None, entry)
        for image, entry in content.items()
    ]


def _lines(path) -> Iterator[_Entry]:
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = unicode.parse_json(line)
                image = identity(entry["id"])
                boxes = entry["boxes"]
            except (KeyError, TypeError, ValueError) as error:
                reason = annotation_files.reason(error)
                raise ValueError(
                    f"{path}, line {number}: no {{id, boxes}}, or cut off ({reason})."
                ) from None
            yield image, entry.get("size"), boxes


def _coco(content: Mapping[str, Any]) -> Iterator[_Entry]:
    images = annotation_files.unique(content["images"], "images")
    categories = annotation_files.unique(content.get("categories", []), "categories")
    found: dict[str, list[dict[str, Any]]] = {}
    for image, annotation in annotation_files.by_image(content["annotations"], images):
        label = annotation.get("label", annotation.get("phrase"))
        if label is None:
            label = categories[identity(annotation["category_id"])]["name"]
        box = annotation.get("bbox")
        if _are_numbers(box, 4):
            x, y, width, height = box
            box = [x, y, x + width, y + height]
        box = {**annotation, "label": label, "box": box}
        found.setdefault(image, []).append(box)
    for image, boxes in found.items():
        yield image, [images[image][side] for side in ("width", "height")], boxes


def _detection(size: Any, entry: Any) -> list[Detection]:
    """A box; none where it has no area, as what detectors cut off at the border."""
    if not isinstance(entry, dict):
        raise _BrokenBoxError("no {label, box}", f"{entry} is no {{label, box}}")
    label = entry.get("label", entry.get("phrase"))
    if not isinstance(label, str) or not label.strip():
        raise _BrokenBoxError("no label", f"a box without label: {entry}")
    box, given = _four(entry.get("box")), entry.get("box")
    if size is not None:
        if not _are_numbers(size, 2) or min(size) <= 0:
            reason = f"its size {size} is not [width, height] in pixels"
            raise _BrokenBoxError("size that is none", reason)
        box = [c / side for c, side in zip(box, (*size, *size))]
    elif max(box) > _SHARES:
        raise _BrokenBoxError(
            "pixels without a size",
            f'box {given} of {label!r} is in pixels: give "size": [width, height], too',
        )
    if not all(-OVERHANG <= c <= 1 + OVERHANG for c in box):
        raise _BrokenBoxError(
            "outside the picture", f"box {given} of {label!r} lies outside the picture"
        )
    if box[0] > box[2] or box[1] > box[3]:
        raise _not_corners(given)
    score = entry.get("score")
    if score is not None and not _are_numbers([score], 1):
        raise _BrokenBoxError("score that is no number", f"score {score!r} of {label!r}")
    x0, y0, x1, y1 = (min(max(c, 0.0), 1.0) for c in box)
    if not (x0 < x1 and y0 < y1):
        return []
    score = 1.0 if score is None else float(score)
    return [Detection(label, (x0, y0, x1, y1), score, *_span(entry))]


def _four(box: Any) -> list[float]:
    if not _are_numbers(box, 4):
        raise _not_corners(box)
    return [float(c) for c in box]


def _not_corners(box: Any) -> _BrokenBoxError:
    return _BrokenBoxError("not x0, y0, x1, y1", f"box {box} is not [x0, y0, x1, y1]")


def _are_numbers(values: Any, count: int) -> bool:
    is_list = isinstance(values, list) and len(values) == count
    return is_list and all(
        isinstance(c, int | float) and not isinstance(c, bool) and math.isfinite(c) for c in values
    )


def _span(entry: Mapping[str, Any]) -> tuple[tuple[int, int] | None, str | None]:
    if (span := entry.get("span")) is None:
        return None, None
    is_pair = isinstance(span, list) and len(span) == 2 and all(type(c) is int for c in span)
    caption = entry.get("caption")
    if not (is_pair and 0 <= span[0] < span[1]):
        raise _BrokenBoxError("span that is none", f"span {span} is not [start, end] in characters")
    if not isinstance(caption, str | None):
        raise _BrokenBoxError("caption that is no text", f"caption {caption!r}")
    return (span[0], span[1]), caption
