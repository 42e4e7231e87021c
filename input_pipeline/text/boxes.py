"""Boxes as text, the way CogVLM (arXiv 2311.03079) writes them, and the overlap of boxes.

A box is `[[x0,y0,x1,y1]]` in thousandths of the image's width and height, three digits each, x to
the right and y down; several boxes of one thing share the brackets: `[[...;...]]`. No special token
is involved. Coordinates are shares of the sides, so a resize that squashes the image keeps them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_GROUP = re.compile(r"\[\[(.*?)\]\]")
# Of a side: data sets and detectors let boxes end a little outside.
OVERHANG = 0.05


class Found(NamedTuple):
    """Boxes that a text names in one pair of brackets.

    Attributes:
      start, end: where the brackets stand: text[start:end].
      boxes: f64[K, 4] (x0, y0, x1, y1), K at least 1.
    """

    start: int
    end: int
    boxes: np.ndarray


# How prompts speak of boxes.
BOX_FORM = "[[x0,y0,x1,y1]]"


def format_boxes(boxes: np.ndarray) -> str:
    """`[[x0,y0,x1,y1]]` or `[[...;...]]` of boxes [K, 4] or [4], in shares of the image's sides.

    Each coordinate is floor(1000 c), c clipped to 0..0.999 (the published text does not say how it
    rounds). c counts with seven decimals: float32 has no 0.251, only one that is 1e-8 less.

    Raises:
      ValueError: no box, another shape, or a coordinate that is no number.
    """
    boxes = np.atleast_2d(np.asarray(boxes, np.float64))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or np.isnan(boxes).any():
        raise ValueError(f"Boxes are numbers [K, 4] with K of 1 or more, not {boxes.tolist()}.")
    thousandths = np.floor(np.clip(np.round(boxes, 7), 0, 0.999) * 1000).astype(int)
    return f"[[{';'.join(','.join(f'{c:03d}' for c in box) for box in thousandths)}]]"


def find_boxes(text: str) -> list[Found]:
    """All that can be read as boxes, in the order of the text.

    By the released rule: whatever stands in double brackets, divided at semicolons and commas;
    parts that are not all digits are passed over. So are those that are not four numbers of at most
    three digits.
    """
    found = []
    for match in _GROUP.finditer(text):
        parts = [part.split(",") for part in match[1].split(";")]
        boxes = [[int(c) for c in part] for part in parts if _is_box(part)]
        if boxes:
            found.append(Found(*match.span(), np.array(boxes) / 1000))
    return found


def parse_boxes(text: str) -> np.ndarray:
    """f64[K, 4] (x0, y0, x1, y1): all boxes of a text, see `find_boxes`.

    Raises:
      ValueError: there is none.
    """
    found = find_boxes(text)
    if not found:
        raise ValueError(
            f"There is no box in {text!r}. A box is [[x0,y0,x1,y1]]: digits without spaces, in "
            "thousandths, 000 to 999."
        )
    return np.concatenate([group.boxes for group in found])


def distinct(boxes: Sequence) -> np.ndarray:
    """f64[K, 4]: boxes [N, 4], each once, in their order."""
    found = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.array(list(dict.fromkeys(map(tuple, found.tolist())))).reshape(-1, 4)


def shares(pixels: Sequence, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels, [K, 4] (x0, y0, x1, y1), as shares f64[K, 4] of the image's sides, and
    bool[K]: which of them lie inside and have an area.

    Data sets let boxes end a little outside: what is out by 5 % of a side or less ends at the edge.
    """
    boxes = np.asarray(pixels, np.float64).reshape(-1, 4) / (width, height, width, height)
    near = ((boxes >= -OVERHANG) & (boxes <= 1 + OVERHANG)).all(axis=1)
    boxes = boxes.clip(0, 1)
    return boxes, near & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [..., 4] and [..., 4], which broadcast, to f64[...].

    0 where a box has no area, or its second corner lies before the first.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    areas = _area(a), _area(b)
    intersection = np.where((areas[0] > 0) & (areas[1] > 0), sides.clip(0).prod(axis=-1), 0)
    union = areas[0] + areas[1] - intersection
    return intersection / np.where(union > 0, union, 1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(axis=-1)


def _is_box(numbers: list[str]) -> bool:
    return len(numbers) == 4 and all(c.isascii() and c.isdecimal() and len(c) <= 3 for c in numbers)
