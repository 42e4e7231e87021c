"""Images in windows that overlap, and the mean of what is found in them, at any size.

The windows of all images are dealt to the devices such that those of one image stay on one, which
can then put them together by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Part of an image: its number, and the window's upper left corner, in pixels."""

    image: int
    top: int
    left: int


def starts(size: int, window: int, stride: int) -> list[int]:
    """Where the windows of an axis of `size` pixels begin; the last is moved inwards.

    `size` is no less than `window`.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [min(i * stride, size - window) for i in range(count)]


def windows(image: int, size: tuple[int, int], window: int, stride: int) -> list[Window]:
    """All windows of an image, row after row."""
    tops, lefts = (starts(side, window, stride) for side in size)
    return [Window(image, top, left) for top in tops for left in lefts]


def dealt(images: Sequence[Sequence[Window]], parts: int, rows: int) -> list[Window | None]:
    """The order in which batches of `parts` times `rows` windows go through the devices.

    Each image goes to the part that has least so far, and its windows keep their order. None fills
    up the batches.

    Args:
      images: the windows of each.
      parts: how many devices share a batch.
      rows: of a batch on each of them.
    """
    queues: list[list[Window | None]] = [[] for _ in range(parts)]
    for image in images:
        min(queues, key=len).extend(image)
    length = -(-max(map(len, queues)) // rows) * rows
    for queue in queues:
        queue += [None] * (length - len(queue))
    return [
        window
        for first in range(0, length, rows)
        for queue in queues
        for window in queue[first : first + rows]
    ]


def mean_of_windows(
    size: int, window: int, stride: int, cells: int, output: int, padded: int
) -> np.ndarray:
    """What each pixel of an axis takes of the cells of all windows: each window is stretched from
    its cells to its pixels, windows are averaged where they overlap, and the axis is stretched
    from `size` to `output` pixels; bilinear, half-pixel centres.

    Args:
      cells: of each window.
      padded: rows of the result; those from `output` on are 0.

    Returns:
      f32[padded, windows * cells], rows with the sum 1.
    """
    first = starts(size, window, stride)
    pixels = np.zeros((size, len(first), cells))
    for number, start in enumerate(first):
        pixels[start : start + window, number] = stretched(cells, window)
    pixels = pixels.reshape(size, -1)
    pixels /= pixels.sum(axis=1, keepdims=True)
    found = np.zeros((padded, pixels.shape[1]), np.float32)
    found[:output] = stretched(size, output) @ pixels
    return found


def stretched(size: int, output: int) -> np.ndarray:
    """f64[output, size]: linear interpolation between pixel centres; beyond the border is the
    border."""
    at = np.clip((np.arange(output) + 0.5) * size / output - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(size)), 0)
