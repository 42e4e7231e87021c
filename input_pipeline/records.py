"""Records as bytes: how a prepared shard stores one example.

Layout: u32 little-endian length of the header | header | blobs, one after the other. The header is
ASCII JSON, `[fields, blobs]`: `fields` holds the plain values; `blobs` lists `[name, type, shape]`
of every bytes value (type "bytes", shape [length]), list of them (type "bytes[]", shape their
lengths) and array (type as numpy writes it, e.g. "<f4").
Reading a record executes nothing that is stored in it.
"""

import contextlib
import itertools
import json
import math
import os
import struct
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline.checks.errors import BigVlpError

DATASET_FILE = "dataset.json"
# Of the layout above and of DATASET_FILE; a reader refuses any other.
FORMAT_VERSION = 1


class BrokenRecordError(BigVlpError, ValueError):
    """A record cannot be used; the message names it and says why."""


@contextlib.contextmanager
def naming(record: Mapping[str, Any], advice: str = "") -> Iterator[None]:
    """Within it a ValueError names the record; `advice` goes behind what it says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Record {record['id']!r}: {error}{advice}") from error


def what_is_wrong(name: str, error: Exception) -> str:
    """One line about an error that a record has caused; `name` is said if the error names none."""
    text = " ".join(str(error).split())
    if text.startswith("Record "):
        return text
    if not isinstance(error, OSError | ValueError):
        # May be the code's fault as well as the record's: say where.
        place = traceback.extract_tb(error.__traceback__)[-1]
        file = os.path.basename(place.filename)
        text = f"{type(error).__name__}: {text} ({file}, line {place.lineno})"
    return f"{name}: {text}"


def images_of(record: Mapping[str, Any]) -> list[bytes]:
    """The encoded images of a record: its `images`, its one `image`, or none."""
    if "images" in record:
        return list(record["images"])
    return [record["image"]] if "image" in record else []


def without_images(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what `images_of` gives."""
    return {name: value for name, value in record.items() if name not in ("image", "images")}


def may_pass(error: Exception) -> bool:
    """Whether what a disk or network refuses now may be had the next time: no fault of a record."""
    lasting = FileNotFoundError, IsADirectoryError, NotADirectoryError
    return isinstance(error, OSError) and not isinstance(error, lasting)


def attempt(function: Callable[..., Any], *arguments) -> Any:
    """What a function returns, or its exception; that of an argument which is one already."""
    for argument in arguments:
        if isinstance(argument, Exception):
            return argument
    try:
        return function(*arguments)
    except Exception as error:  # malformed records raise many types
        return error


def given(found: Any) -> Any:
    """What was found; an exception in its place is raised."""
    if isinstance(found, Exception):
        raise found
    return found


_LENGTH = struct.Struct("<I")
_DTYPES = {str(d.str): d for d in (np.dtype(c).newbyteorder("<") for c in "?bBhHiIqQefd")}


def encode(record: dict[str, Any]) -> bytes:
    """Bytes of a record; equal records give equal bytes.

    Args:
      record: name -> bytes, list of bytes, numpy array of booleans, integers or floats, or plain
        value: None, bool, int, finite float, str, and lists and str-keyed dicts of these. Arrays
        and bytes are allowed at the top level only.

    Raises:
      TypeError: a value of another type, named.
      ValueError: a float that is not finite.
    """
    fields, blobs, payload = {}, [], []
    for name, value in record.items():
        if isinstance(value, bytes):
            blobs.append((name, "bytes", [len(value)]))
            payload.append(value)
        elif isinstance(value, list) and value and all(isinstance(x, bytes) for x in value):
            blobs.append((name, "bytes[]", [len(item) for item in value]))
            payload += value
        elif isinstance(value, np.ndarray) and _stored_type(value) in _DTYPES:
            blobs.append((name, _stored_type(value), list(value.shape)))
            payload.append(value.astype(_stored_type(value), copy=False).tobytes())
        else:
            _check_plain(value, name)
            fields[name] = value
    header = json.dumps([fields, blobs], separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"".join([_LENGTH.pack(len(header)), header, *payload])


def decode(data: bytes) -> dict[str, Any]:
    """The record that `encode` was given (plain values first); arrays are fresh and writable.

    Raises:
      ValueError: `data` is not a whole record.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        position = _LENGTH.size + length
        record, blobs = json.loads(data[_LENGTH.size : position])
        for name, kind, shape in blobs:
            dtype = _DTYPES.get("|u1" if kind in ("bytes", "bytes[]") else kind)
            if dtype is None or any(n < 0 for n in shape):
                raise ValueError(f"field {name!r} has type {kind!r} and shape {shape}")
            values = sum(shape) if kind == "bytes[]" else math.prod(shape)
            end = position + dtype.itemsize * values
            if end > len(data):
                raise ValueError(f"field {name!r} is cut off")
            blob = data[position:end]
            if kind == "bytes":
                record[name] = blob
            elif kind == "bytes[]":
                ends = itertools.accumulate(shape)
                record[name] = [blob[last - size : last] for size, last in zip(shape, ends)]
            else:
                record[name] = np.frombuffer(blob, dtype).reshape(shape).copy()
            position = end
        if position != len(data):
            raise ValueError(f"{len(data) - position} bytes too many")
    except (ValueError, TypeError, struct.error) as error:
        raise ValueError(f"Not a record, or a damaged one: {error}.") from None
    return record


def _stored_type(array: np.ndarray) -> str:
    return array.dtype.newbyteorder("<").str


def _check_plain(value: Any, name: str) -> None:
    # Left alone, JSON would turn tuples into lists and integer keys into strings.
    if isinstance(value, list):
        for item in value:
            _check_plain(item, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"Record field {name!r}: dict key {key!r} is not a str.")
            _check_plain(item, f"{name}.{key}")
    elif not (value is None or isinstance(value, str | bool | int | float)):
        what = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(
            f"Record field {name!r} holds a value of type {what}, which a record cannot store: "
            "bytes and numeric arrays go at the top level; otherwise use str, int, float, bool, "
            "None, and lists and dicts of them."
        )
