"""Pixels of a procedural scene: an antialiased RGB image and its semantic mask."""

import functools

import cv2
import numpy as np

from input_pipeline.scenes.layout import SHAPES, Layout, outline

_RGB = {
    "red": (214, 32, 32),
    "yellow": (244, 220, 30),
    "green": (28, 140, 48),
    "cyan": (60, 214, 226),
    "blue": (34, 64, 206),
    "purple": (146, 44, 176),
    "black": (22, 22, 22),
    "white": (244, 244, 244),
}
_TINT = 10  # most that a channel departs from the values above, which leave room for it
_OVERSAMPLE = 2
_SHIFT = 4  # bits of sub-sample precision in OpenCV's polygon corners


def render(layout: Layout, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a layout.

    Returns:
      image u8[S, S, 3], RGB, each pixel the mean of 2 x 2 samples.
      mask u8[S, S]: 0 is background, 1 + SHAPES.index(shape) an object; a pixel counts as what its
      centre is.
    """
    side = image_size * _OVERSAMPLE
    image = _background(layout.background, side).copy()
    mask = np.zeros((side, side), np.uint8)
    for obj in layout.objects:
        rgb = [c + round(_TINT * t) for c, t in zip(_RGB[obj.colour], obj.tint, strict=True)]
        contours = [c * side for c in outline(obj)]
        # Samples of the image lie half a sample inside its border. The mask's lie a whole one, so
        # that every second one is the centre of a pixel.
        cv2.fillPoly(image, [_fixed_point(c - 0.5) for c in contours], rgb, shift=_SHIFT)
        kind = 1 + SHAPES.index(obj.shape)
        cv2.fillPoly(mask, [_fixed_point(c - 1.0) for c in contours], kind, shift=_SHIFT)
    image = cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_AREA)
    return image, mask[::_OVERSAMPLE, ::_OVERSAMPLE].copy()


def _fixed_point(corners: np.ndarray) -> np.ndarray:
    return np.rint(corners * 2**_SHIFT).astype(np.int32)


@functools.lru_cache(maxsize=32)
def _background(name: str, side: int) -> np.ndarray:
    """u8[side, side, 3]. Every scene with this background shares these very pixels."""
    position = (np.arange(side, dtype=np.float32) + 0.5) / side
    y, x = np.meshgrid(position, position, indexing="ij")
    grey = np.array([158, 160, 164], np.float32)
    if name == "grey":
        shade = np.zeros_like(x)
    elif name == "tan":
        grey = np.array([192, 164, 128], np.float32)
        shade = np.zeros_like(x)
    elif name == "striped":
        shade = np.where((x + y) * 8 % 1 < 0.5, 18, -18)
    elif name == "checked":
        shade = np.where((np.floor(x * 8) + np.floor(y * 8)) % 2 < 1, 18, -18)
    elif name == "dotted":
        shade = np.where(np.hypot(x * 10 % 1 - 0.5, y * 10 % 1 - 0.5) < 0.26, -26, 6)
    else:  # shaded: dark at the top, light at the bottom
        shade = (y - 0.5) * 100
    image = np.clip(grey + shade[..., None], 0, 255).astype(np.uint8)
    image.flags.writeable = False  # cached
    return image
