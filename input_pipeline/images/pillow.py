"""Images of every format that Pillow reads -> uint8 RGB arrays, and what no image may exceed.

A header is believed only within limits, so that no file, real or made up, takes all memory or time.
"""

import io
import re
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow's own limit for its formats; decoding takes some 15 bytes per pixel.
MAX_PIXELS = 178_956_970
# Of the longer to the shorter side: resizing the shorter one to S pixels makes S * S * 256.
MAX_ASPECT_RATIO = 256
# Of a progressive JPEG, each of which passes over all pixels; encoders write 10 or so, and libtiff
# has the same limit.
MAX_SCANS = 100
# Larger images are made one at a time, whatever the number of threads.
_LARGE_PIXELS = 1 << 25

_large = threading.Lock()
# Pillow warns of large images and of odd tags, once for each file; an image is used or an error.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Markers but for stuffed bytes, restarts and those without a length.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
# Formats whose 16-bit grey fills the range; where bits are fewer, Pillow scales, but in TIFF.
_SIXTEEN_BITS = ("PNG", "PPM", "TIFF", "JPEG2000")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF 6.0, pages 29, 37 and 80


def decode(data: bytes) -> np.ndarray:
    """Decodes an encoded image (the first, of several) to u8[H, W, 3] RGB.

    Samples of 16 bits lose the lower 8. Alpha is dropped; rotation and profiles are not applied.

    Raises:
      ValueError: no image, a broken one, one beyond the limits, or one of values without a known
        black and white; the message says why.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            check_size(*image.size)
            if image.format in ("JPEG", "MPO"):
                check_scans(data)
            with room(*image.size):
                image.load()
                check_size(*image.size)  # of formats that hold images in images
                return _rgb(image)
    except MemoryError:
        raise  # The limits leave it to the machine.
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot decode {len(data)} bytes: not a known image format") from error
    except Exception as error:  # Its plugins raise many types on corrupt bytes.
        raise ValueError(f"cannot decode an image of {len(data)} bytes: {error}") from error


def size(data: bytes) -> tuple[int, int]:
    """(width, height) that the header of an encoded image tells.

    Raises:
      ValueError: no image, or one beyond the limits.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            check_size(*image.size)
            return image.size
    except UnidentifiedImageError:
        raise ValueError(f"cannot decode {len(data)} bytes: not a known image format") from None


def check_size(width: int, height: int) -> None:
    """Raises ValueError for an image of too many pixels, or one that is nearly a line."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"of {width}x{height} pixels one side is more than {MAX_ASPECT_RATIO} times the other"
        )


def check_scans(data: bytes) -> None:
    """Raises ValueError for a JPEG of more scans than `MAX_SCANS`."""
    # The bytes of a marker may also occur in a thumbnail, or behind the image.
    values = np.frombuffer(data, np.uint8)
    found = np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA))
    if found > MAX_SCANS and (scans := _num_scans(data)) > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans; the limit is {MAX_SCANS}")


def room(width: int, height: int) -> AbstractContextManager:
    """A context for making an image of that size."""
    return _large if width * height > _LARGE_PIXELS else nullcontext()


def _formats() -> list[str]:
    """All but EPS, for which Pillow would start another program."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _num_scans(data: bytes) -> int:
    scans, position = 0, 2
    while (match := _MARKER.search(data, position)) and match[0] != b"\xff\xd9":
        scans += match[0] == b"\xff\xda"
        length = int.from_bytes(data[match.end() : match.end() + 2], "big")
        position = match.end() + length
    return scans


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels u8[H, W, 3] of a loaded image."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    signed_or_float = set(tags.get(_SAMPLE_FORMAT, ())) & {2, 3}
    sixteen = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
    if signed_or_float or (image.mode in ("I", "F") and not sixteen):
        raise ValueError(
            "its samples are signed, floats or of 32 bits: it cannot be shown truthfully, as "
            "nothing says which values are black and white"
        )
    if not sixteen:
        image.info.pop("transparency", None)  # It would be turned into colours, with a warning.
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image.format not in _SIXTEEN_BITS:
        raise ValueError(f"16-bit samples of {image.format} cannot be shown truthfully")
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey  # White is zero.
    return np.repeat(grey[..., None], 3, axis=2)
