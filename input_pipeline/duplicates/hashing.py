"""Writes the signatures of every image of a data set: in parallel, resumable, independent of both.

A part is what one task reads, a tar or 5,000 records of a source. `<part>.parquet` holds its images
that decode, `<part>.parquet.json` says what it was made of, and `hashes.json`, written last, that
all parts are there. Nothing here depends on other parts.
"""

import contextlib
import functools
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from etils import epath
from rich.console import Console
from rich.table import Table

from input_pipeline.command_line import open_source
from input_pipeline.duplicates import signatures
from input_pipeline.files import listing, outages
from input_pipeline.files.ranges import open_file, source_path
from input_pipeline.files.whole import (
    checksum,
    finished,
    remove_temporaries,
    vouched,
    write_json,
    write_whole,
)
from input_pipeline.images import crops
from input_pipeline.records import images_of, may_pass, what_is_wrong
from input_pipeline.sources import kept_source
from input_pipeline.sources.shared import pieces
from input_pipeline.tars import samples as tar_samples
from input_pipeline.workers import Run, say

HASHES_FILE = "hashes.json"
# Of HASHES_FILE, the parts, and the signatures in them; a reader refuses any other.
FORMAT_VERSION = 2
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("digest", pa.binary(signatures.DIGEST_BYTES)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("hash", pa.uint64()),
        ("mirrored_hash", pa.uint64()),
        ("detail", pa.binary(signatures.DETAIL_BYTES)),
        ("thumbnail", pa.binary(signatures.THUMBNAIL_BYTES)),
    ]
)
_SUFFIX = ".parquet"
_RECORDS_PER_PART = 5000
_RECORDS_AT_ONCE = 64  # read together where they are far away

Images = Iterator[tuple[str, bytes | Exception]]


@dataclass(frozen=True)
class Part:
    """What one task hashes.

    Attributes:
      name: of its input, for messages.
      file: name of what is written.
      origin: identifies the input, and tells when it was changed.
      size: share of the work, in the unit of the progress bar.
      read: yields (id, encoded image, or why there is none) of every record; picklable.
    """

    name: str
    file: str
    origin: dict[str, Any]
    size: float
    read: Callable[[], Images]


def plan(text: str) -> tuple[list[Part], str]:
    """Parts of a pattern of tars or of a source, and the unit of their sizes.

    Raises:
      ValueError, OSError: nothing matches, or the source cannot be made.
    """
    if text.endswith(".tar"):
        tars = tar_samples.find_tars(text)
        status = zip(tars, listing.statuses(tars))
        return [_part_of_tar(tar, *found[:2]) for tar, found in status], "MB"
    name, given, source = open_source(text)
    arguments = json.dumps(given)
    parts = [
        Part(
            name=piece.name,
            file=f"{piece.stem}{_SUFFIX}",
            origin={**piece.origin, "modified": piece.modified},
            size=len(piece.indices),
            read=functools.partial(
                _read_source, name, arguments, piece.origin["fingerprint"], piece.indices
            ),
        )
        for piece in pieces.cut(name, source, _RECORDS_PER_PART)
    ]
    return parts, "records"


def _part_of_tar(tar: Path | epath.Path, size: int, modified: int) -> Part:
    return Part(
        name=str(tar),
        file=tar.stem + _SUFFIX,
        origin={"file": tar.name, "bytes": size, "modified": modified},
        size=size / 1e6,
        read=functools.partial(_read_tar, tar),
    )


def _read_tar(tar: Path | epath.Path) -> Images:
    """Ids are those of prepared data, "<tar stem>/<key>"."""
    tar = source_path(tar)  # known to this process, too
    with open_file(tar) as file:
        for sample in tar_samples.index(tar):
            id_ = f"{tar.stem}/{sample.key}"
            if problem := tar_samples.image_problem(sample):
                yield id_, ValueError(": ".join(problem))
            else:
                yield id_, sample.read(file, tar_samples.image_extensions(sample)[0])


def _read_source(name: str, arguments: str, fingerprint: str, indices: range) -> Images:
    source = kept_source(name, arguments, fingerprint)
    for first in range(0, len(indices), _RECORDS_AT_ONCE):
        some = indices[first : first + _RECORDS_AT_ONCE]
        for index, record in zip(some, source.records(some)):
            if isinstance(record, Exception):
                yield f"record {index}", record
                continue
            images = images_of(record)
            if not (images or "images" in record) or not all(isinstance(i, bytes) for i in images):
                images = [ValueError("it has no image: images are encoded bytes")]
            yield from ((record["id"], image) for image in images)


def write(
    parts: list[Part],
    output: Path | epath.Path,
    run: Run,
    unit: str,
    console: Console,
) -> None:
    """Writes the parts that are not there yet, and the description; prints a table.

    Args:
      run: `run(function, tasks, unit, console)`, as `command_line.runner` gives it.
      unit: of the parts' sizes.

    Raises:
      ValueError: parts failed (they were reported on the console), the directory holds something
        else, or no image is left.
      KeyboardInterrupt: after the workers were ended.
    """
    started = time.monotonic()
    entries = _finished_parts(output, {part.file: part for part in parts})
    if entries:
        say(
            console,
            f"{len(entries)} of {len(parts)} parts are hashed already (their input is as it was).",
        )
    tasks = [(part, (part, output)) for part in parts if part.file not in entries]
    if tasks:
        (output / HASHES_FILE).unlink(missing_ok=True)  # It vouches for files that will change.
    failures = 0
    for part, result in run(hash_part, tasks, unit=unit, console=console):
        if isinstance(result, str):
            failures += 1
            say(console, f"FAILED {result}")
        else:
            entries[part.file] = result
    if failures:
        raise ValueError(
            f"{failures} of {len(parts)} parts failed (see above); {len(entries)} are hashed and "
            "will be kept. Repair or remove their input, then run the same command."
        )
    ordered = [entries[part.file] for part in parts]
    images = sum(entry["images"] for entry in ordered)
    broken = [item for entry in ordered for item in entry["broken"]]
    if not images:
        why = f": {broken[0]['id']!r}: {broken[0]['reason']}" if broken else ", nor any other"
        raise ValueError(f"The input has no image that decodes{why}.")
    described = {
        "version": FORMAT_VERSION,
        "images": images,
        "broken": len(broken),
        "parts": [{key: entry[key] for key in ("file", "images", "sha256")} for entry in ordered],
    }
    remove_temporaries(output)
    write_json(output / HASHES_FILE, described)
    for item in broken[:5]:
        say(console, f"left out: {item['id']!r}: {item['reason']}")
    table = Table(show_header=False)
    table.add_row("images", f"{images:,}")
    table.add_row("left out: broken image", f"{len(broken):,}")
    table.add_row("without a perceptual hash: one colour", f"{sum(e['flat'] for e in ordered):,}")
    table.add_row("parts", f"{len(ordered):,}")
    table.add_row("time", f"{time.monotonic() - started:.1f} s")
    console.print(table)
    say(console, f"Wrote {output / HASHES_FILE}")


def _finished_parts(output: Path | epath.Path, parts: dict[str, Part]) -> dict[str, dict[str, Any]]:
    """What earlier runs finished: file -> its JSON. Removes what they left half-written.

    Raises:
      ValueError: `output` holds other files, or the hashes of other input.
    """
    kept = {}
    for path, file, entry in finished(output, HASHES_FILE):
        if file not in parts:
            raise ValueError(
                f"{path} does not belong to the hashes of this --input: use another --output, or "
                "remove the file."
            )
        wanted = FORMAT_VERSION, parts[file].origin
        if entry is None or (entry["version"], entry["origin"]) != wanted:
            continue
        with contextlib.suppress(FileNotFoundError):
            if checksum(output / file) == entry["sha256"]:
                kept[file] = entry
    return kept


def hash_part(part: Part, output: Path | epath.Path) -> dict[str, Any] | str:
    """Writes the files of one part. Returns the JSON, or the reason of the failure."""
    try:
        return _hashed(part, source_path(output) / part.file)
    except (OSError, ValueError) as error:
        return what_is_wrong(part.name, error)


@outages.outlasting
def _hashed(part: Part, path: Path | epath.Path) -> dict[str, Any]:
    rows, broken = _rows(part)
    written = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), written, compression="zstd")
    data = written.getvalue()
    entry = {
        "version": FORMAT_VERSION,
        "origin": part.origin,
        "file": part.file,
        "images": len(rows),
        "flat": sum(row["hash"] is None for row in rows),
        "broken": broken,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    vouched(path, functools.partial(write_whole, path, data), entry)
    return entry


def _rows(part: Part) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of `SCHEMA`, and {id, reason} of what has no image that decodes.

    Raises:
      OSError: storage does not answer: nothing is wrong with the image.
      ValueError: all of the input is damaged.
    """
    rows, broken = [], []
    for id_, data in part.read():
        if isinstance(data, Exception):
            if may_pass(data):
                raise data
            reason = data
        else:
            try:
                rows.append({"id": id_, "file": part.name.rpartition("/")[2], **sign(data)})
                continue
            except (MemoryError, ValueError) as error:
                reason = error
        broken.append({"id": id_, "reason": " ".join(str(reason).split()) or repr(reason)})
    return rows, broken


def sign(data: bytes) -> dict[str, Any]:
    """The columns of `SCHEMA` that an encoded image has wherever it is.

    Raises:
      ValueError: it does not decode.
    """
    pixels = crops.decode(data)
    thumbnail = signatures.thumbnail(pixels)
    is_flat = signatures.contrast(thumbnail[None]).item() < signatures.FLAT
    if is_flat:
        found = dict.fromkeys(signatures.Frequencies._fields)
    else:
        found = signatures.frequencies(pixels)._asdict()
    return {
        "digest": signatures.digest(data),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "bytes": len(data),
        **found,
        "thumbnail": np.ascontiguousarray(thumbnail).tobytes(),
    }
