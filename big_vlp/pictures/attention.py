"""What an image's and a caption's poolers attend to, given each other: COSMOS' figure of attention
(arXiv 2412.01814)."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable

from big_vlp.pictures.figures import page, show_pixels, write

SCALE = "cividis"
FEW_WORDS = 36  # more are written smaller
# Behind the words of three levels of attention.
_LEVELS = ("#f2f2f2", "#f6e08a", "#f2b705")


class Attended(NamedTuple):
    """An image and a caption.

    Attributes:
      pixels: u8[S, S, 3], as the model sees it.
      patches: f32[h, w], weights.
      words: with the weight of each.
    """

    name: str
    pixels: np.ndarray
    patches: np.ndarray
    words: Sequence[tuple[str, float]]


def draw(path, rows: Sequence[Attended]) -> None:
    """A picture with a row per image: the image, its map, and the caption; each from the least to
    the most attended.

    Args:
      path: of the PNG.
    """
    figure, axes = page(len(rows), (1, 1.2, 1.3))
    for (left, middle, right), row in zip(axes, rows):
        show_pixels(left, row.pixels, row.name)
        show_pixels(middle, _blended(row.pixels, row.patches), "image, given the caption")
        figure.colorbar(ScalarMappable(cmap=SCALE), ax=middle, shrink=0.8, ticks=(0, 0.5, 1))
        right.set_title("caption, given the image", fontsize=10, loc="left")
        right.set(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()  # places the axes, in which words are laid out
    for (_, _, right), row in zip(axes, rows):
        _write_words(right, row.words)
    write(figure, path)


def levels(weights: np.ndarray) -> np.ndarray:
    """i[n] of weights: 0, 1 or 2, thirds of the way from the least to the most."""
    return np.minimum((_unit(np.asarray(weights, float)) * len(_LEVELS)).astype(int), 2)


def _unit(x: np.ndarray) -> np.ndarray:
    """From the least to the most, 0 to 1."""
    return (x - x.min(initial=np.inf)) / max(np.ptp(x) if x.size else 0, 1e-12)


def _blended(pixels: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """The image under its map, u8[S, S, 3]."""
    smooth = cv2.resize(_unit(patches), pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    colours = matplotlib.colormaps[SCALE](np.clip(smooth, 0, 1))[..., :3] * 255
    grey = pixels.mean(axis=2, keepdims=True)
    return (0.45 * grey + 0.55 * colours).astype(np.uint8)


def _write_words(axis, words: Sequence[tuple[str, float]]) -> None:
    """The words in lines, each on the colour of its level."""
    x, y = 0.0, 0.93
    size, line = (12, 0.13) if len(words) <= FEW_WORDS else (9, 0.09)
    renderer = axis.figure.canvas.get_renderer()
    for (word, _), level in zip(words, levels([weight for _, weight in words])):
        box = {"facecolor": _LEVELS[level], "edgecolor": "none", "boxstyle": "square,pad=0.25"}
        text = axis.text(x, y, word, fontsize=size, va="top", bbox=box, parse_math=False)
        extent = text.get_window_extent(renderer).transformed(axis.transData.inverted())
        if extent.x1 > 1 and x > 0:
            x, y = 0.0, y - line
            text.set_position((x, y))
        x += extent.width + line / 3
