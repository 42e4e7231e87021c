"""Near copies of images: what is found of planted ones at each limit, and the cost of a search.

- distance D, detail N, difference X: openclipart's images, after those that are plainly the same
  (distance 2, difference 0.03) were taken out, and one copy of each kind of some of them. For each
  kind the share of copies that lie within the limits of their original (recall). `pairs`: of other
  images, within the limits; whether they are copies, the eye must say. `per_1e9`: of a thousand
  million pairs. `precision of KIND`: of the list, were there one copy of this kind of every image,
  and all pairs wrong, one image dropped for each; it falls as the number of images grows.
- hashing: images per second of one core, from their encoded bytes.
- search: random hashes, a tenth of them near another, in so many parts: seconds of one core for
  one choice of blocks, and for reading what a task looks at; how many choices and tasks there are,
  and the time of all; the most memory that the process has taken so far.
- search, one hash: as many images that all have the same hash, and thumbnails of noise.
"""

import dataclasses
import io
import math
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from input_pipeline.duplicates import hashing, search, signatures
from input_pipeline.duplicates.search import Settings
from input_pipeline.images import crops
from tests.benchmarks.common import one_core

# (distance, detail, difference)
LIMITS = (
    *((distance, 40, 0.2) for distance in (0, 2, 4, 6, 8, 10)),
    *((8, detail, 0.2) for detail in (8, 16, 32, 256)),
    *((8, 40, difference) for difference in (0.1, 0.15, 0.25, 10.0)),
    *((6, 16, 0.2), (6, 16, 0.1), (4, 8, 0.1)),
)


MOST_BITS = max(distance for distance, *_ in LIMITS)


def measure(
    tars: str = "",
    num_images: int = 500,
    num_hashes: int = 1_000_000,
    distance: int = 8,
    num_parts: int = 1,
):
    """Args: directory of openclipart; of its images; of a search: hashes, distance, parts."""
    with one_core():
        rows = quality(Path(tars), num_images) if tars else []
        return [*rows, speed(num_hashes, distance, num_parts), one_hash(num_hashes // 10)]


def quality(folder: Path, num_images: int) -> list[dict]:
    images = read(folder)
    started = time.perf_counter()
    signed = Signed(images)
    hashed_per_s = len(images) / (time.perf_counter() - started)
    first, second, ways = near_pairs(signed)
    same = within(ways, 2, 256, 0.03)
    kept = np.setdiff1d(np.arange(len(images)), second[same])
    is_left = np.isin(first, kept) & np.isin(second, kept)
    ways = [tuple(each[is_left] for each in way) for way in ways]
    chosen = kept[np.linspace(0, len(kept) - 1, num_images).astype(int)]
    originals = signed.take(chosen)
    pixels = [crops.decode(images[place]) for place in chosen]
    kinds = {kind: Signed([copy(p) for p in pixels]) for kind, copy in KINDS.items()}
    paired = {kind: originals.compared(copies) for kind, copies in kinds.items()}
    rows = []
    for limits in LIMITS:
        recall = {kind: within(found, *limits).mean() for kind, found in paired.items()}
        pairs = int(within(ways, *limits).sum())
        precision = {
            f"precision of {kind}": share * len(kept) / max(1, share * len(kept) + pairs)
            for kind, share in recall.items()
        }
        rows.append(
            {
                "case": "distance {}, detail {}, difference {}".format(*limits),
                **recall,
                "pairs": pairs,
                "per_1e9": pairs * 1e9 / math.comb(len(kept), 2),
                **precision,
            }
        )
    return [*rows, {"case": "hashing", "images_per_s": hashed_per_s}]


def read(folder: Path) -> list[bytes]:
    images = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = (member for member in tar if member.name.endswith(".jpg"))
            images += [tar.extractfile(member).read() for member in members]
    return sorted(set(images))


class Signed:
    """Signatures of encoded images; the hash of one without is that of no other."""

    def __init__(self, images: list[bytes]):
        rows = [hashing.sign(data) for data in images]
        own = [i if row["hash"] is None else row["hash"] for i, row in enumerate(rows)]
        turned = [i if row["hash"] is None else row["mirrored_hash"] for i, row in enumerate(rows)]
        self.flat = np.array([row["hash"] is None for row in rows])
        self.hashes, self.mirrored = np.array(own, np.uint64), np.array(turned, np.uint64)
        empty = bytes(signatures.DETAIL_BYTES)
        self.details = np.stack([np.frombuffer(row["detail"] or empty, "<u8") for row in rows])
        self.thumbnails = np.stack([np.frombuffer(row["thumbnail"], np.uint8) for row in rows])
        self.contrasts = signatures.contrast(self.thumbnails)

    def take(self, places: np.ndarray) -> "Signed":
        taken = object.__new__(Signed)
        vars(taken).update({name: array[places] for name, array in vars(self).items()})
        return taken

    def compared(self, other: "Signed") -> list[tuple[np.ndarray, ...]]:
        """(bits, details, difference), each [n], for each way to lay an image over the other's at
        the same place: as they are, and one or the other mirrored."""
        ways = []
        for ours, theirs, is_turned in (
            (self.hashes, other.hashes, False),
            (self.hashes, other.mirrored, True),
            (self.mirrored, other.hashes, True),
        ):
            bits = np.bitwise_count(ours ^ theirs).astype(int) + 64 * (self.flat | other.flat)
            difference, details = np.full((2, len(bits)), np.inf)
            near = np.flatnonzero(bits <= MOST_BITS)
            turned = np.full(len(near), is_turned)
            details[near] = signatures.details(self.details[near], other.details[near], turned)
            thumbnails = other.thumbnails[near]
            if is_turned:
                thumbnails = signatures.mirrored(thumbnails)
            contrasts = self.contrasts[near], other.contrasts[near]
            difference[near] = signatures.differences(self.thumbnails[near], thumbnails, contrasts)
            ways.append((bits, details, difference))
        return ways


def within(ways: list[tuple[np.ndarray, ...]], *limits: float) -> np.ndarray:
    """bool[n]: in one of the ways below all of `LIMITS`' kind."""
    near = [np.all([a <= b for a, b in zip(way, limits)], axis=0) for way in ways]
    return np.any(near, axis=0)


def near_pairs(signed: Signed) -> tuple[np.ndarray, np.ndarray, list]:
    """Places i < j of the pairs whose hashes are near, and `compared` of these."""
    found = []
    for place in range(len(signed.hashes) - 1):
        rest = np.arange(place + 1, len(signed.hashes))
        ways = signed.take(np.full(len(rest), place)).compared(signed.take(rest))
        near = np.flatnonzero(within(ways, MOST_BITS, np.inf, np.inf))
        ways = [tuple(each[near] for each in way) for way in ways]
        found.append((np.full(len(near), place), rest[near], ways))
    first, second, ways = zip(*found)
    joined = [tuple(map(np.concatenate, zip(*parts))) for parts in zip(*ways)]
    return np.concatenate(first), np.concatenate(second), joined


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def resized(pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape
    size = max(1, width // 2), max(1, height // 2)
    return jpeg(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), 90)


def cropped(pixels: np.ndarray) -> bytes:
    """2% of each side, a half at each edge, but a pixel at the least."""
    high, wide = (max(1, round(side * 0.01)) for side in pixels.shape[:2])
    return jpeg(np.ascontiguousarray(pixels[high:-high, wide:-wide]))


def cut(pixels: np.ndarray) -> bytes:
    """2% of each side, all at the top and the left."""
    high, wide = (max(1, round(side * 0.02)) for side in pixels.shape[:2])
    return jpeg(np.ascontiguousarray(pixels[high:, wide:]))


KINDS = {
    "resized": resized,
    "recompressed": lambda pixels: jpeg(pixels, 50),
    "cropped": cropped,
    "cut": cut,
    "mirrored": lambda pixels: jpeg(np.ascontiguousarray(pixels[:, ::-1]), 90),
}


def synthetic(folder: Path, count: int, hashes: np.ndarray, mirrored: np.ndarray) -> None:
    arrays = search.Arrays(folder, count)
    rng = np.random.default_rng(1)
    arrays.hash[:], arrays.mirrored_hash[:] = hashes, mirrored
    arrays.detail[:] = 0
    arrays.thumbnail[:] = rng.integers(0, 256, arrays.thumbnail.shape, np.uint8)
    arrays.contrast[:] = signatures.contrast(arrays.thumbnail[:1]).item()
    arrays.rank[:] = np.arange(count)
    arrays.flush()


def speed(count: int, distance: int, parts: int) -> dict:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, np.uint64)
    near = count // 10
    hashes[:near] = hashes[-near:] ^ np.uint64(1) << rng.integers(0, 64, near, np.uint64)
    settings = Settings(distance, 40, 0.2, mirrored=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic(folder, count, hashes, rng.integers(0, 2**64, count, np.uint64))
        tasks = search.plan(count, settings, -(-2 * count // parts))
        arrays = search.Arrays(folder)
        started = time.perf_counter()
        search._Entries.of(tasks[0], arrays, True)
        reading = time.perf_counter() - started
        seconds = []
        for task in tasks[:: max(1, len(tasks) // 3)][:3]:
            few = dataclasses.replace(task, choices=task.choices[:2])
            started = time.perf_counter()
            search.search(few, folder, 0, settings)
            took = time.perf_counter() - started
            seconds.append((took - reading) / len(few.choices))
    choices = sum(task.size for task in tasks)
    return {
        "case": f"search, {count:,} images, distance {distance}, {parts} parts",
        "s_per_choice": np.mean(seconds),
        "s_reading": reading,
        "choices": choices,
        "tasks": len(tasks),
        "s": np.mean(seconds) * choices + reading * len(tasks),
        "gb": peak_gb(),
    }


def one_hash(count: int) -> dict:
    settings = Settings(8, 40, 0.2, mirrored=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic(folder, count, np.uint64(5), np.uint64(2**64 - 1))
        [task] = search.plan(1, settings)
        started = time.perf_counter()
        search.search(task, folder, 0, settings)
    return {
        "case": f"search, {count:,} images of one hash",
        "s": time.perf_counter() - started,
        "gb": peak_gb(),
    }


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
