"""Data sources: random-access collections of records, chosen by module name.

A record is a dict with `id` (str), `image` (encoded bytes), `captions` (dict of field -> list of
str) and, where the data has them, boxes, masks, labels and questions. `Source` is their base.
"""

import functools
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from input_pipeline.checks import arguments, parts
from input_pipeline.files.cache import Cache
from input_pipeline.sources.shared.base import Source, Wrapper


def make_source(
    name: str,
    fraction: float | None = None,
    cache_dir: str | os.PathLike | None = None,
    cache_gb: float = 100.0,
    **kwargs,
) -> Source:
    """Builds the `Source` of a module in this package, or of another: see `checks.parts`.

    Args:
      name: of the module.
      fraction: keeps about this share of the records, see `Fraction`; by default all.
      cache_dir: directory on a local disk for copies of shards and tars that lie in a bucket, see
        `files.cache`; by default there are none.
      cache_gb: the most that copies take there together, in 10^9 bytes.

    Raises:
      ValueError: no such source, one without the base, or `fraction` or `cache_gb` is out of range,
        or the fraction leaves nothing.
      ArgumentError: the source does not take one of the arguments, or lacks one.
    """
    source = arguments.call("", parts.find("data source", __name__, name, "Source"), kwargs)
    if not isinstance(source, Source):
        raise ValueError(
            f"The Source of {name} must derive from {__name__}.Source, see docs/extending.md."
        )
    if cache_dir is not None:
        source.keep_in(Cache(cache_dir, cache_gb))
    return source if fraction is None else Fraction(source, fraction)


@functools.cache
def kept_source(name: str, arguments: str, fingerprint: str | None = None) -> Source:
    """`make_source` once in a process, for its workers: some sources read a large table.

    Args:
      name: of the source.
      arguments: of it, as JSON.
      fingerprint: of the source that the command found; None for any.

    Raises:
      ValueError: this process, perhaps on another machine, finds another source.
    """
    source = make_source(name, **json.loads(arguments))
    if fingerprint is not None and (found := source.fingerprint()) != fingerprint:
        raise ValueError(
            f"source {name} is another one for this worker (fingerprint {found}) than for the "
            f"command ({fingerprint}): it was changed meanwhile, or machines see different files "
            "under one path."
        )
    return source


def check_fields(captions: Sequence[str]) -> tuple[str, ...]:
    """Names of caption fields, as a tuple.

    Raises:
      ValueError: one string instead of a list, none, or one twice.
    """
    if isinstance(captions, str):
        raise ValueError(f"captions={captions!r}: give a list of fields, e.g. [{captions!r}].")
    fields = tuple(captions)
    if not fields or len(set(fields)) < len(fields):
        raise ValueError(f"captions={list(fields)}: give at least one field, and each once.")
    return fields


class Fraction(Wrapper):
    """A fixed random part of a source, in its order.

    A record is kept if a hash of its index is below `fraction`: the same records on every machine,
    and a smaller fraction is a part of a larger one.

    Raises:
      ValueError: `fraction` is not in (0, 1], no record is left, or the source mixes by weight.
    """

    def __init__(self, source: Source, fraction: float):
        if isinstance(fraction, bool) or not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction!r}: give a share of the records in (0, 1].")
        if source.weights is not None:
            raise ValueError(
                "A weighted mixture takes no fraction: give `fraction` to each of its sources."
            )
        super().__init__(source)
        self._kept = _kept(len(source), fraction)
        if not len(self._kept):
            raise ValueError(
                f"fraction={fraction} leaves none of {len(source):,} records; choose a larger one."
            )
        self._fraction = float(fraction)

    def __len__(self) -> int:
        return len(self._kept)

    def record(self, index: int) -> dict[str, Any]:
        return self._source[int(self._kept[index])]

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        return self._source.records([int(self._kept[index]) for index in indices])

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        return self._source.fields([int(self._kept[index]) for index in indices])

    def identity(self) -> Iterable[str]:
        yield f"fraction {self._fraction!r} of {self._source.fingerprint()}"


def _kept(size: int, fraction: float) -> np.ndarray:
    """Indices i64[n], ascending, whose hash falls below `fraction`."""
    limit = np.uint64(round(fraction * 2**53))
    parts = []
    for first in range(0, size, 2**20):  # in parts: the hashes of 30 M indices take a gigabyte
        indices = np.arange(first, min(first + 2**20, size), dtype=np.uint64)
        parts.append(indices[_mix(indices) >> np.uint64(11) < limit].astype(np.int64))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """u64[n] -> u64[n], one output step of SplitMix64 (doi 10.1145/2714064.2660195)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
