"""Encoded image bytes -> uint8 RGB arrays: training crops (fast) and evaluation images (exact).

Training crops come from libjpeg-turbo and OpenCV. Evaluation images go through Pillow's antialiased
filters, as torchvision does, because published numbers depend on it to the pixel.
"""

import math
import random
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from input_pipeline.images import pillow

if TYPE_CHECKING:
    from input_pipeline.preprocess import Preprocess

ASPECT_RATIO = (3 / 4, 4 / 3)
_LOG_ASPECT_RATIO = tuple(map(math.log, ASPECT_RATIO))

# One loader worker per core already; a thread pool inside each would only oversubscribe the host.
cv2.setNumThreads(0)

# Warnings of libjpeg after which pixels are missing or made up. Others tell of harmless oddities,
# such as stray bytes between segments.
_LOSSES = ("premature end of data", "bad Huffman", "bad arithmetic", "instead of RST")
# Bytes that a thread keeps for the next image; a larger one gets its own.
_MAX_SCRATCH = 1 << 26

_memory = threading.local()


def decode(data: bytes) -> np.ndarray:
    """Decodes an encoded image to u8[H, W, 3] RGB. Alpha is dropped; EXIF rotation is not applied
    (both as in the reference implementations). Samples of 16 bits lose the lower 8.

    Raises:
      ValueError: the bytes are no image, a broken or truncated one, or one beyond the limits of
        `images.pillow`; the message says why.
    """
    size = _jpeg_size(data)
    return pillow.decode(data) if size is None else _decode_jpeg(data, *size)


def random_resized_crop_box(
    width: int, height: int, scale: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Draws a crop box (left, top, width, height), in pixels, by torchvision's RandomResizedCrop.

    The area is uniform in `scale` (shares of the image's area), the aspect ratio log-uniform in
    3/4..4/3. After 10 boxes that do not fit: the largest central box of an allowed aspect ratio.
    """
    low, high = ASPECT_RATIO
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*_LOG_ASPECT_RATIO))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    w, h = width, height
    if width / height < low:
        h = round(width / low)
    elif width / height > high:
        w = round(height * high)
    return (width - w) // 2, (height - h) // 2, w, h


def crop_resize(
    image: np.ndarray, box: tuple[int, int, int, int], size: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Crops u8[H, W, C] to `box` (left, top, width, height); resizes to u8[size, size, C], in `out`
    if it is given."""
    left, top, width, height = box
    crop = image[top : top + height, left : left + width]
    # The mean of 2x2 pixels has a fast path; any other area filter costs ten times as much.
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        even = crop[: 2 * height, : 2 * width]
        crop = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    shrink = max(width, height) / size
    if shrink <= 1:
        interpolation = cv2.INTER_CUBIC
    elif shrink <= 2 * ASPECT_RATIO[1]:
        # Bilinear reads 2x2 pixels per output. One side shrinks by less than 2 and skips none; the
        # other may skip a quarter, which the eye does not see and an exact filter pays dearly for.
        interpolation = cv2.INTER_LINEAR
    else:
        interpolation = cv2.INTER_AREA
    return cv2.resize(crop, (size, size), dst=out, interpolation=interpolation)


def random_crops(
    data: bytes,
    views: Sequence[tuple[int, tuple[float, float] | None]],
    flip_prob: float,
    rng: random.Random,
    out: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Random resized crops of one image, decoded once, each flipped left-right at random.

    Args:
      data: the encoded image.
      views: one (size, scale) per crop: side of the output in pixels, and range of its share of the
        image's area; None is the whole image, whatever its aspect ratio.
      flip_prob: probability of the flip.
      rng: source of the boxes, then of the flips.
      out: arrays for the crops; by default new ones.

    Returns:
      One u8[size, size, 3] array per view.

    Raises:
      ValueError: as `decode`.
    """
    jpeg_size = _jpeg_size(data)
    image = None if jpeg_size else pillow.decode(data)
    height, width = jpeg_size or image.shape[:2]
    whole = (0, 0, width, height)
    boxes = [
        random_resized_crop_box(width, height, scale, rng) if scale else whole for _, scale in views
    ]
    if image is None:
        shrink = min(min(box[2:]) / size for box, (size, _) in zip(boxes, views))
        image = _decode_jpeg(
            data, height, width, shrink, "RGBX", _scratch("image", 4 * height * width)
        )
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    # What the decoder really did: it may have returned the full size after all.
    x_scale, y_scale = image.shape[1] / width, image.shape[0] / height
    crops = []
    for number, (box, (size, _)) in enumerate(zip(boxes, views)):
        # OpenCV is fast with pixels of four bytes, and slow with three.
        buffer = np.frombuffer(_scratch("crop", 8 * size * size), np.uint8, 8 * size * size)
        crop, flipped = buffer.reshape(2, size, size, 4)
        crop = crop_resize(image, _scale_box(box, x_scale, y_scale), size, crop)
        if rng.random() < flip_prob:
            crop = cv2.flip(crop, 1, dst=flipped)
        own = None if out is None else out[number]
        crops.append(cv2.cvtColor(crop, cv2.COLOR_RGBA2RGB, dst=own))
    return crops


def eval_image(data: bytes, preprocess: "Preprocess") -> np.ndarray:
    """Evaluation image u8[S, S, 3], equal to the pixel with Pillow's resize.

    "shortest": the shortest side to R = resize_size (by default S), the other to
    int(R * long / short), then the centre crop; halves of its offsets go to the even neighbour, or
    down. "squash": both sides to S.

    Raises:
      ValueError: as `decode`.
    """
    size = preprocess.image_size
    resampling = Image.Resampling[preprocess.interpolation.upper()]
    image = Image.fromarray(decode(data))
    if preprocess.resize == "squash":
        return np.array(image.resize((size, size), resampling))
    width, height = image.size
    short_side = preprocess.resize_size or size
    long_side = int(short_side * max(width, height) / min(width, height))
    width, height = (short_side, long_side) if width <= height else (long_side, short_side)
    with pillow.room(width, height):
        resized = np.array(image.resize((width, height), resampling))
    rounded = round if preprocess.crop_rounding == "even" else math.floor
    left, top = rounded((width - size) / 2), rounded((height - size) / 2)
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that libjpeg-turbo reads and that is within the limits, else None:
    Pillow gives the better reason, or copes."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    try:
        pillow.check_size(width, height)
        pillow.check_scans(data)
    except ValueError as error:
        raise ValueError(f"cannot decode an image of {len(data)} bytes: {error}") from None
    return height, width


def _decode_jpeg(
    data: bytes,
    height: int,
    width: int,
    shrink: float = 1.0,
    form: str = "RGB",
    buffer: bytearray | None = None,
) -> np.ndarray:
    """Pixels, at 1/2, 1/4 or 1/8 of the size where `shrink` >= 2, 4 or 8: skipping DCT coefficients
    is an antialiased downscaling for free. They are RGB or what else `form` says, such as RGBX; and
    may lie in `buffer`, if one is given. RGB anyway, and elsewhere, where that takes another way.
    """
    factor = next((f for f in (8, 4, 2) if shrink >= f), 1)
    size = {"min_height": math.ceil(height / factor), "min_width": math.ceil(width / factor)}
    with pillow.room(width, height):
        try:
            *_, colors, _ = simplejpeg.decode_jpeg_header(data)
            if colors not in ("CMYK", "YCCK"):
                return simplejpeg.decode_jpeg(data, form, **size, buffer=buffer)
            # Adobe stores inks inverted, and all do as Adobe does.
            inks = 255 - simplejpeg.decode_jpeg(data, "CMYK", **size)
            return np.array(Image.frombuffer("CMYK", inks.shape[1::-1], inks).convert("RGB"))
        except ValueError as error:
            if any(loss in str(error) for loss in _LOSSES):
                raise ValueError(
                    f"cannot decode an image of {len(data)} bytes: truncated or damaged ({error})"
                ) from None
    return pillow.decode(data)


def _scratch(use: str, size: int) -> bytearray:
    """Memory of this thread for pixels that nobody keeps: fresh pages would cost a tenth more."""
    if size > _MAX_SCRATCH:
        return bytearray(size)
    if len(getattr(_memory, use, b"")) < size:
        setattr(_memory, use, bytearray(size))
    return getattr(_memory, use)


def _scale_box(
    box: tuple[int, int, int, int], x_scale: float, y_scale: float
) -> tuple[int, int, int, int]:
    left, top, width, height = box
    x0, y0 = round(left * x_scale), round(top * y_scale)
    x1, y1 = round((left + width) * x_scale), round((top + height) * y_scale)
    return x0, y0, max(x1 - x0, 1), max(y1 - y0, 1)
