"""The features of a whole set of images, and of their captions, in one file.

The set is worked on in parts, each of which is kept beside the file until all are there: a command
that was killed goes on when it is given again, and the file is the same. The file appears whole.
"""

import functools
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from big_vlp.api.model import Model
from big_vlp.parallel.processes import differing, from_first
from evaluators.shared.records import image_of
from evaluators.shared.rows import gather_rows
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.buckets import make_directory, storage_path
from input_pipeline.files.whole import (
    in_directory,
    parts_of,
    place,
    remove_directory,
    scratch,
    temporary_name,
    write_json,
    write_whole,
)
from input_pipeline.records import may_pass, what_is_wrong
from input_pipeline.sources import Source
from input_pipeline.text.captions import texts_of

PART_ROWS = 1024
FORMATS = (".npz", ".parquet")
_ABOUT = "about.json"


class EmbedError(BigVlpError):
    """Embeddings cannot be made or written; the message says what to do."""


class Embedded(NamedTuple):
    """How many images and captions are in the file of `embed`, and how many records were
    left out."""

    images: int
    captions: int
    broken: int


def embed(
    model: Model,
    source: Source,
    output: str | os.PathLike,
    captions: Sequence[str] = (),
    batch_size: int = 256,
    say: Callable[[str], None] = lambda _: None,
) -> Embedded:
    """Writes the features of all records of a source; every process of a cluster calls it.

    OUTPUT.npz holds `ids` [N] and `image` f32[N, D] in the source's order, and with `captions`
    also `caption_ids` [M], `captions` [M] and `text` f32[M, D], those of an image behind each
    other. OUTPUT.parquet has a row per image: `id`, `image` (D floats), and the lists `captions`
    and `text`. Features are those of `Model.encode_image` and `encode_text`.

    Records that cannot be used are left out; OUTPUT.broken.jsonl names them. Those that storage
    does not give now may be there the next time: then it ends, with the parts that are done.

    Args:
      output: a file on a disk or in a bucket; it must not exist.
      captions: fields whose texts are embedded, too.
      batch_size: rows on all devices together; no value depends on it, but for rounding. With one
        that divides PART_ROWS what was killed goes on to the bit.
      say: is told how far it is.

    Raises:
      ModelError: the model has no such features.
      EmbedError: the output exists or cannot be written, parts of other embeddings lie beside it,
        the first record has no such captions, or no record can be used.
      BrokenRecordError: storage does not give a record.
      PathError: `output` is no path.
    """
    output = storage_path(output)
    if output.suffix not in FORMATS:
        raise EmbedError(f"{output}: give a file that ends in {' or '.join(FORMATS)}.")
    parts = parts_of(output)
    for name in ("encode_image", "encode_text") if captions else ("encode_image",):
        model.check(name)
    about = {
        "model": os.fspath(model.stored.directory),
        "step": model.stored.step,
        "weights": model.stored.weights,
        "records": f"{len(source)} of {source.fingerprint()}",
        "captions": list(captions),
        "part_rows": PART_ROWS,
    }

    names = [f"{start // PART_ROWS:06d}.npz" for start in range(0, len(source), PART_ROWS)]

    asked = {**about, "output": os.fspath(output), "batch_size": batch_size}
    if others := differing(asked):
        error = EmbedError(
            f"The processes would embed different things: they differ in {', '.join(others)}. Give "
            "all the same command, and the same files."
        )
        error.agreed = True
        raise error

    def begin():
        with _writing(output):
            _check_captions(source, captions)
            return _finished(parts, output, names, about)

    done = from_first(begin, EmbedError)
    if done:
        say(f"{done:,} of {len(names):,} parts are there already, in {parts}.")
    first, began = done * PART_ROWS, time.monotonic()
    with jax.set_mesh(model.mesh):
        made = _parts(model, source, first, captions, batch_size)
        for number, part in enumerate(made, done):
            from_first(functools.partial(_keep, parts / names[number], part), EmbedError)
            end = min(len(source), (number + 1) * PART_ROWS)
            rate = (end - first) / (time.monotonic() - began)
            say(f"{end:,} of {len(source):,} images, {rate:,.0f} a second.")

    def join():
        with _writing(output):
            return _join(parts, names, output, captions)

    return Embedded(*from_first(join, EmbedError))


def broken_file(output: str | os.PathLike):
    """Where `embed` names the records that it left out."""
    output = storage_path(output)
    return output.with_name(f"{output.name}.broken.jsonl")


def _check_captions(source: Source, captions: Sequence[str]) -> None:
    """Of the first record, so that a misspelt field does not become a file without texts."""
    if not len(source):
        raise EmbedError("The source has no records.")
    first = source.records([0])[0] if captions else None
    if isinstance(first, dict):
        missing = [field for field in captions if field not in first["captions"]]
        if missing:
            raise EmbedError(
                f"Record {first['id']!r} has no captions {missing}; it has "
                f"{list(first['captions'])}."
            )


def _finished(parts, output, names: Sequence[str], about: dict[str, Any]) -> int:
    """How many parts an earlier call left, the first ones; a new directory says what it is of."""
    file = parts / _ABOUT
    if not file.exists():
        if output.exists():
            raise EmbedError(f"{output} exists: delete it, or give another output.")
        make_directory(parts)
        for path in in_directory(parts):
            path.unlink()  # nothing says what they are of
        write_json(file, about)
        return 0
    found = json.loads(file.read_bytes())
    if found != about:
        other = [key for key in about if found.get(key) != about[key]]
        raise EmbedError(
            f"{parts} holds parts of other embeddings ({', '.join(other)} differ: "
            f"{[found.get(key) for key in other]}, now {[about[key] for key in other]}). Delete "
            "it, or give another output."
        )
    found = {path.name for path in in_directory(parts)}
    return next((i for i, name in enumerate(names) if name not in found), len(names))


def _parts(
    model: Model, source: Source, first: int, captions: Sequence[str], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """The parts of all records from one on, each as `_join` reads it, the same on all processes.

    Images of the next part are loaded while one is finished.
    """
    described, pre, count = {}, model.preprocess, len(source) - first
    blank = np.zeros((pre.image_size, pre.image_size, 3), np.uint8)

    def load(row):
        if row >= count:
            return {"image": blank}
        name = f"number {first + row}"
        try:
            record = source[first + row]
            name = record["id"]
            pixels = image_of(record, pre)
            given = record["captions"]
            texts = [t for field in captions if field in given for t in texts_of(given, field)]
            described[row] = name, texts, ""
            return {"image": pixels}
        except Exception as error:  # malformed records raise many types
            if isinstance(error, MemoryError) or may_pass(error):
                raise
            described[row] = name, [], what_is_wrong(f"Record {name!r}", error)
            return {"image": blank}

    if not count:
        return
    # Of a few rows that are left, too, a whole batch: another program might round otherwise.
    loaded = max(count, min(batch_size, len(source)))
    start, waiting = 0, np.zeros((0, 0), np.float32)
    for batch in model.stream("encode_image", load, loaded, batch_size):
        waiting = np.concatenate([waiting, batch]) if len(waiting) else batch
        while start < count and len(waiting) >= (size := min(PART_ROWS, count - start)):
            own = {
                row: described.pop(start + row) for row in range(size) if start + row in described
            }
            found = gather_rows(own, size)
            yield _part(model, found, waiting[:size], captions, batch_size)
            start, waiting = start + size, waiting[size:]


def _part(
    model: Model,
    found: Sequence[tuple[str, Sequence[str], str]],
    features: np.ndarray,
    captions: Sequence[str],
    batch_size: int,
) -> dict[str, np.ndarray]:
    """A part, of what is known of its records (id, captions, what is wrong) and their features."""
    usable = np.array([not reason for _, _, reason in found])
    kept, broken = ([f for f in found if bool(f[2]) is wrong] for wrong in (False, True))
    part = {
        "ids": _strings(name for name, _, _ in kept),
        "image": np.asarray(features[usable], np.float32),
        "broken_ids": _strings(name for name, _, _ in broken),
        "broken_reasons": _strings(reason for _, _, reason in broken),
    }
    if captions:
        texts = [text for _, own, _ in kept for text in own]
        tokens = model.tokens(texts or [""])  # of one, so that the width is known

        def load(row):
            return {"tokens": tokens[row]}

        rows = np.concatenate(list(model.stream("encode_text", load, len(tokens), batch_size)))
        part["text"] = np.asarray(rows[: len(texts)], np.float32)
        part["captions"] = _strings(texts)
        part["counts"] = np.array([len(own) for _, own, _ in kept], np.int64)
    return part


def _keep(path, part: dict[str, np.ndarray]) -> None:
    with _writing(path):
        data = io.BytesIO()
        np.savez(data, **part)
        write_whole(path, data.getvalue())


def _strings(values) -> np.ndarray:
    return np.array(list(values), np.str_)


def _join(parts, names: Sequence[str], output, captions: Sequence[str]) -> tuple[int, int, int]:
    """Writes the file and the names of broken records, and removes the parts."""

    def read(name):
        with np.load(io.BytesIO((parts / name).read_bytes())) as part:
            return dict(part)

    broken, sizes = [], np.zeros(2, int)
    for name in names:
        part = read(name)
        sizes += len(part["ids"]), len(part.get("captions", ()))
        for record, reason in zip(part["broken_ids"], part["broken_reasons"]):
            broken.append(json.dumps({"id": str(record), "reason": str(reason)}) + "\n")
    if not sizes[0]:
        raise EmbedError(f"No image can be used. The first: {json.loads(broken[0])['reason']}")
    make_directory(output.parent)
    with scratch(output.parent) as folder:
        temporary = folder / temporary_name(output.name)
        try:
            write = _write_npz if output.suffix == ".npz" else _write_parquet
            write(temporary, lambda: map(read, names), bool(captions))
            place(temporary, output)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if broken:
        write_whole(broken_file(output), "".join(broken).encode())
    (parts / _ABOUT).unlink()  # first: without it the others count for nothing
    remove_directory(parts)
    return int(sizes[0]), int(sizes[1]), len(broken)


def _write_npz(path, read: Callable, with_captions: bool) -> None:
    """One array after the other, a part at a time: the set may be larger than memory."""
    features, texts = ["image"], {"ids": lambda part: part["ids"]}
    if with_captions:
        features.append("text")
        texts["captions"] = lambda part: part["captions"]
        texts["caption_ids"] = lambda part: np.repeat(part["ids"], part["counts"])
    with zipfile.ZipFile(path, "w") as archive:

        def member(name):
            return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)

        for name, of in texts.items():
            with member(name) as file:
                whole = np.concatenate([of(part) for part in read()])
                np.lib.format.write_array(file, whole, allow_pickle=False)
        for name in features:
            shapes = [part[name].shape for part in read()]
            shape = (sum(rows for rows, _ in shapes), shapes[0][1])
            with member(name) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in read():
                    file.write(part[name].astype("<f4").tobytes())


def _write_parquet(path, read: Callable, with_captions: bool) -> None:
    """A group of rows for each part."""

    def vectors(x):
        return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])

    writer = None
    for part in read():
        columns = {
            "id": pa.array(part["ids"].tolist(), pa.string()),
            "image": vectors(part["image"]),
        }
        if with_captions:
            ends = pa.array(np.append(0, np.cumsum(part["counts"])), pa.int32())
            texts = pa.array(part["captions"].tolist(), pa.string())
            columns["captions"] = pa.ListArray.from_arrays(ends, texts)
            columns["text"] = pa.ListArray.from_arrays(ends, vectors(part["text"]))
        table = pa.table(columns)
        writer = writer or pa.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


@contextmanager
def _writing(output):
    try:
        yield
    except EmbedError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EmbedError(f"{output} cannot be written: {str(reason).rstrip('.')}.") from error
