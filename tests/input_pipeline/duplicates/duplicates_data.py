"""Small images and their hashes, shared by the tests of duplicates."""

import functools
import io

import cv2
import numpy as np
import pyarrow.parquet as parquet
from PIL import Image
from rich.console import Console

from input_pipeline.duplicates import finding, hashing
from input_pipeline.duplicates.search import Settings

QUIET = Console(quiet=True)
SETTINGS = Settings(distance=8, detail=40, difference=0.2, mirrored=True)


def encoded(pixels, quality=95):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def picture(seed, size=(48, 64)):
    """u8[H, W, 3] of soft blots of colour, another for each seed."""
    blots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(blots, size[::-1], interpolation=cv2.INTER_CUBIC)


def scene(seed, size=(192, 256)):
    """u8[H, W, 3] of blots large and small, as fine as pictures of things are."""
    rng = np.random.default_rng(seed)
    pixels = np.full((*size, 3), 128.0)
    for blots in (2, 4, 8, 16, 32):
        some = rng.normal(0, 150 / blots**0.8, (blots, blots, 3))
        pixels += cv2.resize(some, size[::-1], interpolation=cv2.INTER_CUBIC)
    return pixels.clip(0, 255).astype(np.uint8)


def copies(pixels):
    """Copies of an image, of which the defaults find nearly all: kind -> bytes."""
    height, width, _ = pixels.shape
    smaller = cv2.resize(pixels, (width * 3 // 4, height * 3 // 4), interpolation=cv2.INTER_AREA)
    return {
        "resized": encoded(smaller),
        "recompressed": encoded(pixels, 50),
        "cropped": encoded(cropped(pixels)),
        "mirrored": encoded(np.ascontiguousarray(pixels[:, ::-1]), 90),
    }


def cropped(pixels, share=0.02):
    """Without a share of each side, half of it at each edge, but a pixel at the least."""
    high, wide = (max(1, round(side * share / 2)) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[high:-high, wide:-wide])


def in_order(function, tasks, unit, console):
    """What `workers.run_all` does, in this process."""
    for label, arguments in tasks:
        yield label, function(*arguments)


def read(images):
    yield from images


def hash_images(folder, images, parts=1):
    """Directory of hashes of {id: bytes}, in so many parts."""
    items = list(images.items())
    planned = [
        hashing.Part(
            name=f"images {n}",
            file=f"part-{n}.parquet",
            origin={"number": n},
            size=1,
            read=functools.partial(read, items[n::parts]),
        )
        for n in range(parts)
    ]
    hashing.write(planned, folder, in_order, "images", QUIET)
    return folder


def find(output, hashes, against=(), settings=SETTINGS, run=in_order):
    """Rows of the list, as (id, reason, match, distance); and the file's bytes."""
    finding.find(hashes, against, output, settings, run, QUIET)
    table = parquet.read_table(output).to_pylist()
    rows = [(row["id"], row["reason"], row["match"], row["distance"]) for row in table]
    return rows, output.read_bytes()
