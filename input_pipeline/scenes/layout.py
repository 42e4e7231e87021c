"""What is in a procedural scene: objects, where they are, and the background. No pixels, no text.

A scene has 3 to 5 objects that never overlap. No two share both colour and shape, so "the red
circle" means one object. `objects[0]` is the largest by a clear margin, in area and in extent. All
coordinates are fractions of the image side, x to the right and y down.
"""

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
BACKGROUNDS = ("grey", "tan", "striped", "checked", "dotted", "shaded")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Ranges of `Object.extent`. From one range to the next is a factor above 1.30; two shapes of equal
# extent differ by less, in the root of the area and in the longest side. So "small" < "large" < the
# largest by either measure.
_EXTENT = {"small": (0.175, 0.195), "large": (0.255, 0.275), "largest": (0.36, 0.40)}
_MAX_ANGLE = math.radians(12)  # a square turned further would pass for a diamond
_MARGIN = 0.02  # between a box and the border
_GAP = 0.025  # between two boxes, along x or along y: every pair has a definite relation

_T = TypeVar("_T")


def pick(rng: random.Random, items: Sequence[_T]) -> _T:
    """Uniform choice. Python promises that `random()`, not `choice()`, stays the same for ever."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence[_T]) -> list[_T]:
    """A shuffled copy; see `pick` for why this is not `random.shuffle`."""
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        items[i], items[j] = items[j], items[i]
    return items


class Object(NamedTuple):
    """One object.

    Attributes:
      size: "small" or "large"; colour: one of COLOURS; shape: one of SHAPES.
      extent: geometric mean of the longest side and the square root of the area, before rotation.
      angle: rotation in radians.
      box: (x0, y0, x1, y1), tight around the outline.
      tint: three offsets in -1..1 that vary the colour within its name.
    """

    size: str
    colour: str
    shape: str
    extent: float
    angle: float
    box: tuple[float, float, float, float]
    tint: tuple[float, float, float]

    @property
    def phrase(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"

    @property
    def name(self) -> str:
        return f"the {self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """The visible content of a scene; `objects[0]` is the largest, the others in random order."""

    objects: tuple[Object, ...]
    background: str


def relations(a: Object, b: Object) -> list[str]:
    """What `a` is of `b`: one or two of OPPOSITE. Boxes must be apart along the axis to count."""
    found = []
    if a.box[2] < b.box[0]:
        found.append("left of")
    elif a.box[0] > b.box[2]:
        found.append("right of")
    if a.box[3] < b.box[1]:
        found.append("above")
    elif a.box[1] > b.box[3]:
        found.append("below")
    return found


def outline(obj: Object) -> list[np.ndarray]:
    """Closed contours f64[K, 2] of the object; a second contour is a hole."""
    contours, offset = _turned(obj.shape, obj.extent, obj.angle)
    return [c - offset + obj.box[:2] for c in contours]


def sample_layout(rng: random.Random, index: int) -> Layout:
    """Draws a layout.

    The largest object's colour and shape and the background run through all 384 combinations as
    `index` does. Labels are therefore balanced, and captions that name these three differ within
    any 384 consecutive scenes.
    """
    code = _ORDER[index % len(_ORDER)]
    code, background = divmod(code, len(BACKGROUNDS))
    shape, colour = divmod(code, len(COLOURS))
    kinds = _kinds(rng, COLOURS[colour], SHAPES[shape], count=3 + int(3 * rng.random()))
    sizes = ["largest"] + ["large" if rng.random() < 0.4 else "small" for _ in kinds[1:]]
    if sizes.count("large") > 2:  # four large objects and a larger one leave no room
        sizes[-1] = "small"

    def between(low, high):
        return low + (high - low) * rng.random()

    drawn = [(between(*_EXTENT[s]), between(-_MAX_ANGLE, _MAX_ANGLE)) for s in sizes]
    boxes, shrink = _place(rng, [(shape, *d) for (_, shape), d in zip(kinds, drawn, strict=True)])
    objects = tuple(
        Object(
            size="small" if size == "small" else "large",
            colour=colour,
            shape=shape,
            extent=extent * shrink,
            angle=angle,
            box=box,
            tint=(between(-1, 1), between(-1, 1), between(-1, 1)),
        )
        for (colour, shape), size, (extent, angle), box in zip(
            kinds, sizes, drawn, boxes, strict=True
        )
    )
    return Layout(objects, BACKGROUNDS[background])


def _kinds(rng, colour: str, shape: str, count: int) -> list[tuple[str, str]]:
    """`count` distinct (colour, shape) pairs, the first one given.

    The second differs from the first in both, and nothing combines its colour with the first's
    shape: exchanging these two colours always makes a wrong description.
    """
    second = (
        pick(rng, [c for c in COLOURS if c != colour]),
        pick(rng, [s for s in SHAPES if s != shape]),
    )
    kinds, barred = [(colour, shape), second], (second[0], shape)
    while len(kinds) < count:
        kind = pick(rng, COLOURS), pick(rng, SHAPES)
        if kind not in kinds and kind != barred:
            kinds.append(kind)
    return [kinds[0], *shuffled(rng, kinds[1:])]


def _place(rng, items: list[tuple[str, float, float]]):
    """Random clear boxes for (shape, extent, angle) items, and the factor the items shrank by.

    Big objects are placed first. A crowded draw starts again a little smaller, so this ends.
    """
    spans = [
        np.ptp(np.concatenate(_turned(*item)[0]), axis=0).tolist()  # width, height
        for item in items
    ]
    order = sorted(range(len(items)), key=lambda i: -items[i][1])
    shrink = 1.0
    while True:
        boxes = {}
        for i in order:
            width, height = spans[i][0] * shrink, spans[i][1] * shrink
            for _ in range(40):
                x = _MARGIN + rng.random() * (1 - 2 * _MARGIN - width)
                y = _MARGIN + rng.random() * (1 - 2 * _MARGIN - height)
                box = (x, y, x + width, y + height)
                if _clear(box, boxes.values()):
                    boxes[i] = box
                    break
            else:
                break
        if len(boxes) == len(items):
            return [boxes[i] for i in range(len(items))], shrink
        shrink *= 0.99


def _clear(box, others) -> bool:
    x0, y0, x1, y1 = box[0] - _GAP, box[1] - _GAP, box[2] + _GAP, box[3] + _GAP
    for left, top, right, bottom in others:
        if x0 < right and left < x1 and y0 < bottom and top < y1:
            return False
    return True


def _turned(shape: str, extent: float, angle: float):
    """Contours scaled and rotated about the origin, and the top-left corner of their box."""
    cos, sin = extent * math.cos(angle), extent * math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    contours = [c @ turn for c in _UNIT[shape]]
    return contours, contours[0].min(axis=0)


def _unit_shape(shape: str) -> list[np.ndarray]:
    """Contours of a shape whose `extent` is 1."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ball = np.stack([np.sin(t), -np.cos(t)], axis=1)
    corner = ball[::8]  # five directions, the first one up
    heart = np.stack(
        [
            16 * np.sin(t) ** 3,
            5 * np.cos(2 * t) - 13 * np.cos(t) + 2 * np.cos(3 * t) + np.cos(4 * t),
        ],
        axis=1,
    )
    contours = {
        "circle": [ball],
        "square": [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])],
        "triangle": [np.array([[0, -1], [1, 0.732], [-1, 0.732]])],
        "star": [np.stack([corner, 0.45 * ball[4::8]], axis=1).reshape(10, 2)],
        "cross": [_CROSS],
        "ring": [ball, 0.55 * ball],
        # Straight lines to the tip: the curve itself ends in a needle too thin to see.
        "heart": [np.delete(heart, [17, 18, 19, 21, 22, 23], axis=0)],
        "diamond": [np.array([[0, -1], [0.72, 0], [0, 1], [-0.72, 0]])],
    }[shape]
    areas = [
        abs(np.sum(c[:, 0] * np.roll(c[:, 1], -1) - c[:, 1] * np.roll(c[:, 0], -1))) / 2
        for c in contours
    ]
    area = areas[0] - sum(areas[1:])
    extent = math.sqrt(math.sqrt(area) * np.ptp(contours[0], axis=0).max())
    return [c / extent for c in contours]


_ARM = 0.34  # half the width of the cross's arms
_CROSS = np.array(
    [
        *[[-_ARM, -1], [_ARM, -1], [_ARM, -_ARM], [1, -_ARM], [1, _ARM], [_ARM, _ARM]],
        *[[_ARM, 1], [-_ARM, 1], [-_ARM, _ARM], [-1, _ARM], [-1, -_ARM], [-_ARM, -_ARM]],
    ]
)
_UNIT = {shape: _unit_shape(shape) for shape in SHAPES}
_ORDER = shuffled(random.Random(0), range(len(COLOURS) * len(SHAPES) * len(BACKGROUNDS)))
