"""Near copies of images: what is found of planted ones at each distance, and the cost of a search.

- distance D, difference X: openclipart's images, after those that are plainly the same (distance 2,
  difference 0.03) were taken out, and one copy of each kind of some of them. For each kind the
  share of copies that lie within both limits of their original (recall). `others`: of all images,
  those that would be dropped for another, not for a planted copy; whether they are copies, the eye
  must say. `precision`: of the list, were there one copy, of the kinds in turn, of every image, and
  all others no copies.
- hashing: images per second of one core, from their encoded bytes.
- search: random hashes, a tenth of them near another: seconds of one core for one of its tasks, how
  many there are, and all of them; the most memory that the process has taken so far.
- search, one hash: as many images that all have the same hash, and thumbnails of noise.
"""

import io
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

DISTANCES = 0, 2, 4, 6, 8, 10, 12
DIFFERENCES = 0.1, 0.15, 0.2, 0.25, 0.3, 10.0


def measure(tars: str = "", num_images: int = 500, num_hashes: int = 1_000_000, distance: int = 8):
    """Args: directory of openclipart; of its images; hashes of a search; distance of a search."""
    with one_core():
        rows = quality(Path(tars), num_images) if tars else []
        return [*rows, speed(num_hashes, distance), one_hash(num_hashes // 10)]


def quality(folder: Path, num_images: int) -> list[dict]:
    images = read(folder)
    started = time.perf_counter()
    signed = Signed(images)
    hashed_per_s = len(images) / (time.perf_counter() - started)
    first, second, ways = near_pairs(signed)
    same = within(ways, 2, 0.03)
    kept = np.setdiff1d(np.arange(len(images)), second[same])
    is_left = np.isin(first, kept) & np.isin(second, kept)
    second = second[is_left]
    ways = [(bits[is_left], difference[is_left]) for bits, difference in ways]
    chosen = kept[np.linspace(0, len(kept) - 1, num_images).astype(int)]
    originals = signed.take(chosen)
    pixels = [crops.decode(images[place]) for place in chosen]
    kinds = {kind: Signed([copy(p) for p in pixels]) for kind, copy in KINDS.items()}
    paired = {kind: originals.compared(copies) for kind, copies in kinds.items()}
    rows = []
    for distance in DISTANCES:
        for difference in DIFFERENCES:
            limits = distance, difference
            recall = {kind: within(found, *limits).mean() for kind, found in paired.items()}
            # Of two the worse-ranked is dropped; which one that is does not change the number much.
            others = len(np.unique(second[within(ways, *limits)]))
            copies = np.mean(list(recall.values())) * len(kept)
            rows.append(
                {
                    "case": f"distance {distance}, difference {difference}",
                    **recall,
                    "others": others,
                    "of": len(kept),
                    "precision": copies / max(1, copies + others),
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
        self.thumbnails = np.stack([np.frombuffer(row["thumbnail"], np.uint8) for row in rows])
        self.contrasts = signatures.contrast(self.thumbnails)

    def take(self, places: np.ndarray) -> "Signed":
        taken = object.__new__(Signed)
        vars(taken).update({name: array[places] for name, array in vars(self).items()})
        return taken

    def compared(self, other: "Signed") -> list[tuple[np.ndarray, np.ndarray]]:
        """(bits, difference), each [n], for each way to lay an image over the other's at the same
        place: as they are, and one or the other mirrored."""
        ways = []
        for ours, theirs, is_turned in (
            (self.hashes, other.hashes, False),
            (self.hashes, other.mirrored, True),
            (self.mirrored, other.hashes, True),
        ):
            bits = np.bitwise_count(ours ^ theirs).astype(int) + 64 * (self.flat | other.flat)
            difference = np.full(len(bits), np.inf)
            near = np.flatnonzero(bits <= max(DISTANCES))
            thumbnails = other.thumbnails[near]
            if is_turned:
                thumbnails = signatures.mirrored(thumbnails)
            contrasts = self.contrasts[near], other.contrasts[near]
            difference[near] = signatures.differences(self.thumbnails[near], thumbnails, contrasts)
            ways.append((bits, difference))
        return ways


def within(ways: list[tuple[np.ndarray, np.ndarray]], distance: int, difference: float):
    return np.any([(bits <= distance) & (by <= difference) for bits, by in ways], axis=0)


def near_pairs(signed: Signed) -> tuple[np.ndarray, np.ndarray, list]:
    """Places i < j of the pairs whose hashes are near, and their (bits, difference) as `compared`
    gives them."""
    found = []
    for place in range(len(signed.hashes) - 1):
        rest = np.arange(place + 1, len(signed.hashes))
        ways = signed.take(np.full(len(rest), place)).compared(signed.take(rest))
        near = np.flatnonzero(within(ways, max(DISTANCES), np.inf))
        ways = [(bits[near], difference[near]) for bits, difference in ways]
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
    arrays.thumbnail[:] = rng.integers(0, 256, arrays.thumbnail.shape, np.uint8)
    arrays.contrast[:] = signatures.contrast(arrays.thumbnail[:1]).item()
    arrays.rank[:] = np.arange(count)
    arrays.flush()


def speed(count: int, distance: int) -> dict:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, np.uint64)
    near = count // 10
    hashes[:near] = hashes[-near:] ^ np.uint64(1) << rng.integers(0, 64, near, np.uint64)
    settings = Settings(distance, 0.2, mirrored=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic(folder, count, hashes, rng.integers(0, 2**64, count, np.uint64))
        tasks = search.plan(count, settings)
        seconds = []
        for task in tasks[:: max(1, len(tasks) // 3)][:3]:
            started = time.perf_counter()
            search.search(task, folder, 0, settings)
            seconds.append(time.perf_counter() - started)
    return {
        "case": f"search, {count:,} images, distance {distance}",
        "s_per_task": np.mean(seconds),
        "tasks": len(tasks),
        "s": np.mean(seconds) * len(tasks),
        "gb": peak_gb(),
    }


def one_hash(count: int) -> dict:
    settings = Settings(8, 0.2, mirrored=True)
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
