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
SETTINGS = Settings(distance=8, difference=0.2, mirrored=True)


def encoded(pixels, quality=95):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def picture(seed, size=(48, 64)):
    """u8[H, W, 3] of soft blots of colour, another for each seed."""
    blots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(blots, size[::-1], interpolation=cv2.INTER_CUBIC)


def copies(pixels):
    """Copies of an image that the defaults find: kind -> u8[H, W, 3] or its bytes."""
    height, width, _ = pixels.shape
    smaller = cv2.resize(pixels, (width * 3 // 4, height * 3 // 4), interpolation=cv2.INTER_AREA)
    return {
        "resized": encoded(smaller),
        "recompressed": encoded(pixels, 50),
        "mirrored": encoded(np.ascontiguousarray(pixels[:, ::-1]), 90),
    }


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
