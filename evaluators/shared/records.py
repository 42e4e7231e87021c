"""What evaluators read from data: a source, and the fields of its records."""

import contextlib
import contextvars
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline.checks import arguments
from input_pipeline.images.crops import eval_image
from input_pipeline.records import naming
from input_pipeline.sources import make_source
from input_pipeline.text.captions import texts_of

_opened: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "opened", default=None
)


@contextlib.contextmanager
def each_opened_once() -> Iterator[None]:
    """Within it evaluators with equal `data` get one source: to list what is in it takes time."""
    token = _opened.set({})
    try:
        yield
    finally:
        _opened.reset(token)


def described(data: Mapping[str, Any]) -> str:
    """Equal for equal `data`."""
    return json.dumps(data, sort_keys=True, default=str)


def open_source(data: Mapping[str, Any]):
    """Builds the source that `data` (name and arguments) describes; it must not be empty."""
    opened, key = _opened.get(), described(data)
    if opened is not None and key in opened:
        return opened[key]
    source = arguments.call("data", make_source, data)
    if len(source) == 0:
        raise ValueError(f"The data source {dict(data)} has no records to evaluate.")
    if opened is not None:
        opened[key] = source
    return source


def image_of(record: Mapping[str, Any], preprocess) -> np.ndarray:
    """The record's evaluation image u8[S, S, 3].

    Raises:
      ValueError: it cannot be decoded.
    """
    with naming(record):
        return eval_image(record["image"], preprocess)


def captions_of(record: Mapping[str, Any], field: str) -> list[str]:
    """The record's captions in one field.

    Raises:
      ValueError: the record has no such field, or it is not a non-empty list of strings.
    """
    captions = record["captions"]
    if field not in captions:
        raise ValueError(
            f"Record {record['id']!r} has no caption field {field!r}; set caption_field to one of "
            f"{list(captions)}."
        )
    with naming(record):
        texts = texts_of(captions, field)
    if not texts:
        raise ValueError(
            f"Caption field {field!r} of record {record['id']!r} is empty; it must be a list of "
            "strings: prepare the data again."
        )
    return texts
