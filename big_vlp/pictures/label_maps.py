"""Images, the classes of their pixels, and a legend."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.patches import Patch

from big_vlp.pictures.figures import page, show_pixels, write

MOST_NAMES = 10  # in a legend
_GREY = np.array([120, 120, 120], np.uint8)
# Of what is given to no class, or to one without a colour.
OTHERS = "others"


class Segmented(NamedTuple):
    """An image u8[H, W, 3] with its name, and the classes of its pixels i[H, W], -1 for none."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray


def draw(path, rows: Sequence[Segmented], names: Sequence[str]) -> None:
    """A picture with a row per image: the image, its classes in colours, and what they are.

    Args:
      path: of the PNG.
      names: of the classes.
    """
    colours = _colours(rows, len(names))
    figure, axes = page(len(rows), (1.4, 1.4, 0.8))
    for (left, middle, right), row in zip(axes, rows):
        show_pixels(left, row.pixels, row.name)
        coloured = np.where((row.labels >= 0)[..., None], colours[row.labels], _GREY)
        mixed = 0.25 * row.pixels.mean(axis=2, keepdims=True) + 0.75 * coloured
        show_pixels(middle, mixed.astype(np.uint8), "prediction")
        right.legend(
            handles=[
                Patch(color=colour / 255, label=f"{name}  {share:.0%}")
                for name, share, colour in _legend(row.labels, names, colours)
            ],
            loc="center left",
            frameon=False,
            fontsize=11,
            labelspacing=0.6,
        )
    write(figure, path)


def _colours(rows: Sequence[Segmented], count: int) -> np.ndarray:
    """u8[count, 3]: the classes with the most pixels in all images have a colour each."""
    areas = sum(np.bincount(row.labels[row.labels >= 0], minlength=count) for row in rows)
    palette = np.array(matplotlib.color_sequences["tab20"]) * 255
    palette = np.concatenate([palette[0:14:2], palette[16::2], palette[1:14:2], palette[17::2]])
    found = np.tile(_GREY, (count, 1))
    largest = np.argsort(-areas, kind="stable")[: len(palette)]
    found[largest] = palette[: len(largest)]
    return found


def _legend(labels: np.ndarray, names: Sequence[str], colours: np.ndarray) -> list[tuple]:
    """(name, share, colour) of the classes with the most pixels, and of all others together."""
    areas = np.bincount(labels[labels >= 0], minlength=len(names)) / labels.size
    shown = [
        number
        for number in np.argsort(-areas, kind="stable")[:MOST_NAMES]
        if areas[number] >= 0.005 and (colours[number] != _GREY).any()
    ]
    found = [(names[number], areas[number], colours[number]) for number in shown]
    rest = 1 - sum(areas[number] for number in shown)
    return [*found, (OTHERS, rest, _GREY)] if rest >= 0.005 else found
