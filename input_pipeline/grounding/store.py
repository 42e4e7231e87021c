"""The detections of many files by the id of their image, for jobs that meet images in any order.

Every file of boxes becomes a file of lines, one for each image, and an index of them; a sorted
index of all leads from an id to its lines. They are hidden files in the output directory until the
data set is complete: a killed run goes on with those that are there.
"""

import functools
import hashlib
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from rich.console import Console

from input_pipeline.files import listing, outages, whole
from input_pipeline.files.buckets import is_in_bucket, make_directory, storage_path
from input_pipeline.files.ranges import File, read, read_files, source_path
from input_pipeline.grounding import detections
from input_pipeline.grounding.detections import Detection
from input_pipeline.records import given
from input_pipeline.workers import Run, say

_PREFIX = ".boxes-"
_VERSION = 2  # of what is kept in the files
_ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4"), ("size", "<u4"), ("offset", "<u8")])


@dataclass(frozen=True)
class Label:
    """Of a task: the file, and its size in MB."""

    name: str
    size: float


class Found(NamedTuple):
    """Of one image: its boxes, and why others were left out -> their number."""

    boxes: list[Detection]
    broken: Counter[str]


@dataclass(frozen=True)
class Store:
    """Detections by image; small, as it only says where they are.

    Attributes:
      index: file of the sorted index.
      files: of the lines.
      images: number of them.
      example: an id.
      fingerprint: of all boxes files' contents.
    """

    index: str
    files: tuple[File, ...]
    images: int
    example: str
    fingerprint: str

    def find(self, images: Sequence[str]) -> list[Found | None]:
        """What the files say of each image, in their order; None where none names it. All is read
        at once."""
        index = _index(self.index, self.images)
        hashes = np.array([_hash(image) for image in images], np.uint64)
        firsts, ends = (np.searchsorted(index["hash"], hashes + np.uint64(n)) for n in (0, 1))
        wanted = [
            (self.files[entry["file"]], int(entry["offset"]), int(entry["size"]))
            for first, end in zip(firsts, ends)
            for entry in index[first:end]
        ]
        lines = iter([json.loads(given(data)) for data in read(wanted)])
        found: list[Found | None] = []
        for image, count in zip(images, ends - firsts):
            own = [line for line in itertools.islice(lines, int(count)) if line[0] == image]
            boxes = [
                Detection(label, tuple(box), score, span and tuple(span), caption)
                for _, some, _ in own
                for label, box, score, span, caption in some
            ]
            broken = Counter(reason for *_, reasons in own for reason in reasons)
            found.append(Found(boxes, broken) if own else None)
        return found


def build(
    paths: Sequence[Path | epath.Path],
    annotations: Path | epath.Path | None,
    output: Path | epath.Path,
    run: Run,
    console: Console,
) -> Store:
    """Reads files of boxes, those that earlier runs have not.

    Args:
      paths: of the files.
      annotations: see `detections.read`.
      output: directory for the store's own files.
      run: calls a function for many tasks, see `workers.run_all`.

    Raises:
      FileNotFoundError, ValueError: a file is missing, or malformed.
    """
    make_directory(output)
    digests = [listing.contents_digest(path) for path in paths]
    extra = b"" if annotations is None else listing.contents_digest(annotations)
    keys = [listing.fingerprint(f"boxes {_VERSION}", digest, extra) for digest in digests]
    lines = [output / f"{_PREFIX}{key}.jsonl" for key in keys]
    indexes = [output / f"{_PREFIX}{key}.index" for key in keys]
    there = set(whole.in_directory(output))
    sizes = listing.status(paths)[:, 0].tolist()
    tasks = {
        index: (
            Label(str(path), size / 1e6),
            tuple(map(_written, (path, annotations, line, index))),
        )
        for path, size, line, index in zip(paths, sizes, lines, indexes)
        if index not in there
    }  # of files with equal contents one
    failures = 0
    for _, reason in run(_index_file, list(tasks.values()), unit="MB", console=console):
        if reason:
            failures += 1
            if failures > 1 or len(tasks) > 1:
                say(console, f"FAILED {reason}")
    if failures:
        if len(tasks) == 1:
            raise ValueError(reason)
        raise ValueError(f"{failures} of {len(paths)} files of boxes failed (see above).")
    parts = [np.frombuffer(given(data), _ENTRY).copy() for data in read_files(indexes)]
    if not sum(map(len, parts)):
        raise ValueError(f"{', '.join(map(str, paths[:3]))}: there is no box.")
    for number, part in enumerate(parts):
        part["file"] = number
    merged = np.concatenate(parts)
    merged = merged[np.argsort(merged["hash"], kind="stable")]
    fingerprint = listing.fingerprint(*digests, extra)
    index = output / f"{_PREFIX}{fingerprint}.all.npy"
    _save(index, merged)
    files = tuple(
        File(path, int(size)) for path, size in zip(lines, listing.status(lines)[:, 0].tolist())
    )
    first = merged[0]
    wanted = [(files[first["file"]], int(first["offset"]), int(first["size"]))]
    example = json.loads(given(read(wanted)[0]))[0]
    return Store(os.fspath(index), files, len(merged), example, fingerprint)


def remove(output: Path | epath.Path) -> None:
    """Removes the files of a store, whose data set is complete."""
    for path in whole.in_directory(output):
        if path.name.startswith(_PREFIX):
            path.unlink(missing_ok=True)


def _index_file(path: str, annotations: str | None, lines: str, index: str) -> str:
    """Writes the lines and index of one file of boxes. Returns the reason of a failure, or ""."""
    try:
        _write_both(path, annotations, lines, index)
        return ""
    except (OSError, ValueError) as error:
        return str(error) if path in str(error) else f"{path}: {error}"


@outages.outlasting
def _write_both(path: str, annotations: str | None, lines: str, index: str) -> None:
    given_annotations = annotations and source_path(annotations)
    outputs = storage_path(lines), storage_path(index)
    with whole.scratch(outputs[0].parent) as folder:
        names = [folder / whole.temporary_name(output.name) for output in outputs]
        try:
            with names[0].open("wb") as written, names[1].open("wb") as entries:
                for entry in detections.read(source_path(path), given_annotations):
                    place = written.tell()
                    size = written.write(json.dumps(entry).encode() + b"\n")
                    row = np.array((_hash(entry[0]), 0, size, place), _ENTRY)
                    entries.write(row.tobytes())
            for name, output in zip(names, outputs):  # the index last: it vouches for the lines
                whole.place(name, output)
        finally:
            for name in names:
                name.unlink(missing_ok=True)


def _written(path: Path | epath.Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _save(path: Path | epath.Path, array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    whole.write_whole(path, file.getvalue())


def _hash(image: str) -> int:
    # Even, for the end of a range to be the next number.
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "little") & ~1


@functools.lru_cache(maxsize=4)
def _index(path: str, images: int) -> np.ndarray:
    """The sorted index, once in a process; on a disk without reading it."""
    del images  # a store of the same files has as many
    if is_in_bucket(path):
        return np.load(io.BytesIO(given(read_files([path])[0])))
    return np.load(os.fspath(path), mmap_mode="r")
