"""Images as people hold them: paths, encoded bytes, PIL images and arrays, one or many."""

import io
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from big_vlp.api.errors import ModelError, explained
from input_pipeline.files.buckets import storage_path

KINDS = "a path or URL, encoded bytes, a PIL image or an array uint8[H, W, 3] of RGB"
_PATHS = (str, os.PathLike)
_BYTES = (bytes, bytearray, memoryview)

T = TypeVar("T")


def as_list(images: Any) -> list:
    """One image, or any number of them in a list, another iterable or an array u8[N, H, W, 3].

    Raises:
      ModelError: it is neither.
    """
    one = isinstance(images, (*_PATHS, *_BYTES, Image.Image))
    if one or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [images]
    try:
        return list(images)
    except TypeError:
        raise ModelError(
            f"images is of type {type(images).__name__}; give {KINDS}, or a list of them."
        ) from None


def read(image: Any, number: int, use: Callable[[bytes], T]) -> T:
    """`use` of the image as the bytes of a file, as `input_pipeline.images.crops` reads them.

    Files are taken as they are; pixels are written without loss, so that the same rules make model
    input of all.

    Args:
      number: its place among those that were given.

    Raises:
      ModelError: it cannot be read or used; the message names its path, or else its number.
      PathError: the path is a URL that cannot be read, or empty.
    """
    with explained(os.fspath(image) if isinstance(image, _PATHS) else f"images[{number}]"):
        return use(_encoded(image))


def of_pixels(pixels: np.ndarray) -> bytes:
    """u8[H, W, 3] as a PPM file, which holds the pixels as they are."""
    return b"P6 %d %d 255\n" % pixels.shape[1::-1] + pixels.tobytes()


def _encoded(image: Any) -> bytes:
    if isinstance(image, _PATHS):
        return storage_path(image).read_bytes()
    if isinstance(image, _BYTES):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _of_pil(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"it is of type {type(image).__name__}; give {KINDS}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"it is an array {image.dtype}{list(image.shape)}; give {KINDS}.")
    return of_pixels(image)


def _of_pil(image: Image.Image) -> bytes:
    if image.mode in ("I", "F"):
        raise ValueError(
            f"it is a PIL image of mode {image.mode!r}: nothing says which values are black and "
            "white; give 8 bits."
        )
    if not image.mode.startswith("I;16"):
        return of_pixels(np.asarray(image.convert("RGB")))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
