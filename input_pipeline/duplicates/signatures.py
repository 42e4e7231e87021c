"""What an image is compared by: a digest of its bytes, perceptual hashes, details and a thumbnail.

The hash says which images may be copies of each other: 64 bits that can be searched. Details and
the thumbnail say which of these are: two signs in one frame differ in their details, and two flags
of three stripes have one hash whatever their colours.
"""

import hashlib
from typing import NamedTuple

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
_SIDE, _FREQUENCIES, _DETAILS = 32, 8, 16
DETAIL_BYTES = 2 * _DETAILS**2 // 8
# What noise of 2 grey levels in the grey copy makes of a frequency.
_DETAIL_NOISE = 2 * 2 * _SIDE
# Packed bits of 16 x 16 frequencies whose sign mirroring turns: every other column.
_TURNED = np.uint64(0x5555555555555555)


def digest(data: bytes) -> bytes:
    """16 bytes that tell contents apart."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


class Frequencies(NamedTuple):
    """Of an image: pHash, and that of its mirror image, 64 bits each; details, for `details`."""

    hash: int
    mirrored_hash: int
    detail: bytes


def frequencies(pixels: np.ndarray) -> Frequencies:
    """Of an image u8[H, W, 3].

    The hash is pHash as the package ImageHash has it: the 8 x 8 lowest frequencies of a grey copy
    of 32 x 32 pixels, each above their median or not. Mirroring turns the sign of every other
    column, so that both hashes come of one transform, which ImageHash does not give: they are
    computed here, and the tests hold them to ImageHash's numbers. Of the same transform are the
    details: the signs of the 16 x 16 lowest, and whether each stands out of noise.
    """
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    # What is 0 in a symmetric picture would be a coin thrown by the last digit.
    found = scipy.fft.dctn(np.asarray(grey, np.float64)).round(3)
    low, fine = found[:_FREQUENCIES, :_FREQUENCIES], found[:_DETAILS, :_DETAILS]
    signs = np.where(np.arange(_FREQUENCIES) % 2, -1, 1)
    detail = np.packbits([fine > 0, np.abs(fine) > _DETAIL_NOISE])
    return Frequencies(_bits(low), _bits(low * signs), detail.tobytes())


def _bits(frequencies: np.ndarray) -> int:
    above = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def details(one: np.ndarray, other: np.ndarray, is_mirrored: np.ndarray) -> np.ndarray:
    """i64[n]: signs of frequencies that stand out in both of two images and differ, at most 256.

    Args:
      one, other: `Frequencies.detail` as u64[n, 8].
      is_mirrored: bool[n], whether the mirror image of one is meant.
    """
    differ = one[:, :4] ^ other[:, :4] ^ np.where(is_mirrored, _TURNED, np.uint64(0))[:, None]
    return np.bitwise_count(differ & one[:, 4:] & other[:, 4:]).sum(axis=1, dtype=np.int64)


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
