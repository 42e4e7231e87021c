"""What an image is compared by: a digest of its bytes, a perceptual hash and a thumbnail.

The hash says which images may be copies of each other: 64 bits that can be searched. The thumbnail
says which of these are: two flags of three stripes have one hash whatever their colours.
"""

import hashlib

import cv2
import numpy as np
import scipy.fft
from PIL import Image

DIGEST_BYTES = 16
THUMBNAIL = (8, 8, 3)
THUMBNAIL_BYTES = 192
# Grey levels, RMS: a thumbnail that differs less from one colour is noise, and the hash, too.
FLAT = 4.0
_NOISE = 4.0  # grey levels squared, which JPEG leaves in a thumbnail: without it pale copies differ
_SIDE, _FREQUENCIES = 32, 8


def digest(data: bytes) -> bytes:
    """16 bytes that tell contents apart."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def hashes(pixels: np.ndarray) -> tuple[int, int]:
    """Perceptual hashes, of 64 bits each, of an image u8[H, W, 3] and of its mirror image.

    It is pHash as the package ImageHash has it: the 8 x 8 lowest frequencies of a grey copy of 32 x
    32 pixels, each above their median or not. Mirroring turns the sign of every other column.
    """
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = scipy.fft.dctn(np.asarray(grey, np.float64))[:_FREQUENCIES, :_FREQUENCIES]
    # What is 0 in a symmetric picture would be a coin thrown by the last digit.
    low = low.round(3)
    signs = np.where(np.arange(_FREQUENCIES) % 2, -1, 1)
    return _bits(low), _bits(low * signs)


def _bits(frequencies: np.ndarray) -> int:
    above = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """u8[8, 8, 3] of an image u8[H, W, 3], whatever its aspect ratio."""
    return cv2.resize(pixels, THUMBNAIL[:2], interpolation=cv2.INTER_AREA)


def contrast(thumbnails: np.ndarray) -> np.ndarray:
    """RMS distance of each thumbnail u8[..., 192] from its mean colour, in grey levels."""
    colours = thumbnails.reshape(-1, 64, 3).astype(np.float32)
    return np.sqrt(colours.var(axis=1).mean(axis=1))


def differences(
    one: np.ndarray, other: np.ndarray, contrasts: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """f32[n]: RMS difference of thumbnails u8[n, 192], as a share of their `contrast`, f32[n] each.

    A share, since most of many a picture is its white ground.
    """
    squares = (one.astype(np.float32) - other) ** 2
    scale = (contrasts[0] ** 2 + contrasts[1] ** 2) / 2 + _NOISE
    return np.sqrt(squares.mean(axis=1) / scale)


def mirrored(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails u8[n, 192] of the mirror images."""
    return thumbnails.reshape(-1, *THUMBNAIL)[:, :, ::-1].reshape(-1, THUMBNAIL_BYTES)
