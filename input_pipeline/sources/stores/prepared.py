"""Source: a data set written by `python -m input_pipeline.prepare` (ArrayRecord shards)."""

import bisect
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from input_pipeline import records
from input_pipeline.checks import unicode
from input_pipeline.files import array_records, listing, ranges
from input_pipeline.files.buckets import is_in_bucket, storage_path
from input_pipeline.files.cache import Cache
from input_pipeline.sources.shared import base, lists

_REPAIR = "Re-run prepare with the same options; finished shards are kept."


class _Part(NamedTuple):
    """Records of a file, as the reader takes them where its name may hold any character."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Source(base.Source):
    """Random access to the records of one prepared data set.

    Construction checks that every shard is there with its full size, but opens none: shards are
    opened on first use, once per process. Reading is thread-safe; pickling ships file names only.

    It has `class_names` and `label_rule` where they were known when it was prepared. Names and
    prompts of classes may also lie beside the shards, see `shared.lists`.

    Args:
      path: directory that holds the shards and their dataset.json, on a disk or in a bucket.

    Raises:
      FileNotFoundError: no dataset.json there, or a shard is missing.
      ValueError: dataset.json is damaged or of another version, or a shard has the wrong size.
      OSError: a bucket does not give them.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = storage_path(path) if is_in_bucket(path) else Path(path)
        description = _read_description(self._path)
        shards = description["shards"]
        self.label_rule = description.get("label_vocabulary")
        self.packed = [description["packs"].get("views", {})] if "packs" in description else []
        self._names = [shard["file"] for shard in shards]
        beside = [self._path / name for name in lists.FILES]
        sizes = listing.status([*self.files(), *beside])[:, 0]  # listed once
        there = [name for name, size in zip(lists.FILES, sizes[len(shards) :]) if size >= 0]
        class_names, self.templates = lists.read(self._path, there)
        self.class_names = class_names or description.get("class_names")
        for shard, file, size in zip(shards, self.files(), sizes):
            if size < 0:
                raise FileNotFoundError(f"Shard {file} is missing. {_REPAIR}")
            if size != shard["bytes"]:
                raise ValueError(
                    f"Shard {file} has {size:,} bytes instead of {shard['bytes']:,}: it is "
                    f"truncated or was changed. {_REPAIR}"
                )
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards))
        self._sums = [bytes.fromhex(shard["sha256"]) for shard in shards]
        if is_in_bucket(self._path):
            self._data = _InBucket(self._path, shards)
        else:
            self._data = _on_disk(self._path, shards)

    def __len__(self) -> int:
        return self._ends[-1]

    def record(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          ValueError: the shard's contents are damaged.
          OSError: a bucket does not give it.
        """
        return records.given(self.records([index])[0])

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Those of `indices`; in a bucket all are asked for at once."""
        if isinstance(self._data, _InBucket):
            found: Iterable[bytes | Exception] = self._data.read(indices)
        else:  # one by one: a call for many is slower, as it starts a thread for each shard
            found = (records.attempt(self._data.__getitem__, index) for index in indices)
        return [self._decode(index, data) for index, data in zip(indices, found)]

    def _decode(self, index: int, data: bytes | Exception) -> dict[str, Any] | Exception:
        try:
            return records.decode(records.given(data))
        except (RuntimeError, ValueError) as error:
            shard = self._path / self._names[bisect.bisect_right(self._ends, index)]
            return ValueError(
                f"Record {index} cannot be read: shard {shard} is damaged ({error}). Delete it. "
                f"{_REPAIR}"
            )
        except Exception as error:
            return error

    def identity(self) -> Iterable[str | bytes]:
        """The shards' checksums."""
        return f"prepared {records.FORMAT_VERSION}", *self._sums

    def files(self) -> list[Path | epath.Path]:
        """The shards."""
        return [self._path / name for name in self._names]

    def keep_in(self, cache: Cache) -> None:
        """Copies the shards, if they are in a bucket."""
        if isinstance(self._data, _InBucket):
            self._data.cache = cache


class _InBucket:
    """Records by their number, each by one request for its bytes alone, or from a copy of the
    shard. Where they lie stands at the end of a shard, which is read first.

    Attributes:
      cache: of the shards, or None.
    """

    def __init__(self, path: epath.Path, shards: Sequence[Mapping[str, Any]]):
        self.cache: Cache | None = None
        self._counts = [shard["records"] for shard in shards]
        self._ends = list(itertools.accumulate(self._counts))
        self._files = [
            ranges.File(path / shard["file"], shard["bytes"], f"sha256:{shard['sha256']}")
            for shard in shards
        ]
        self._places: dict[int, np.ndarray] = {}

    def __getstate__(self):
        return {**self.__dict__, "_places": {}}

    def read(self, indices: Sequence[int]) -> list[bytes | Exception]:
        numbers = [bisect.bisect_right(self._ends, index) for index in indices]
        failed = self._find_places(sorted(set(numbers)))
        found: list[Any] = [failed.get(number) for number in numbers]
        rows = [row for row, number in enumerate(numbers) if number not in failed]
        wanted = []
        for row in rows:
            number = numbers[row]
            place = indices[row] - self._ends[number] + self._counts[number]
            first, end = self._places[number][place : place + 2].tolist()
            wanted.append((self._files[number], first, end - first))
        for row, (_, first, _), data in zip(rows, wanted, ranges.read(wanted, self.cache)):
            found[row] = records.attempt(array_records.record, data, first)
        return found

    def _find_places(self, numbers: Sequence[int]) -> dict[int, Exception]:
        """Reads where the records of shards lie. Returns why not, where that cannot be read."""
        new = [number for number in numbers if number not in self._places]
        wanted = []
        for number in new:
            file = self._files[number]
            size = array_records.end_size(file.size, self._counts[number])
            wanted.append((file, file.size - size, size))
        failed = {}
        for number, end in zip(new, ranges.read(wanted, self.cache)):
            size, count = self._files[number].size, self._counts[number]
            places = records.attempt(array_records.places, end, size, count)
            (failed if isinstance(places, Exception) else self._places)[number] = places
        return failed


def _on_disk(path: Path, shards: Sequence[Mapping[str, Any]]) -> ArrayRecordDataSource:
    unicode.check(str(path), "The reader of shards knows no such directory")
    # Stating the range of records keeps the reader from opening every shard to count them.
    return ArrayRecordDataSource(
        [
            _Part(str(path / shard["file"]), 0, shard["records"], shard["records"])
            for shard in shards
        ]
    )


def _read_description(path: Path | epath.Path) -> dict[str, Any]:
    file = path / records.DATASET_FILE
    try:
        data = records.given(ranges.read_files([file])[0])
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(
            f"{file} does not exist: {path} is not a prepared data set, or preparing it has not "
            f"finished. {_REPAIR}"
        ) from None
    try:
        description = json.loads(data)
        version = description["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}). {_REPAIR}") from None
    if version != records.FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}; this code reads {records.FORMAT_VERSION}. "
            "Prepare the data again into a new directory."
        )
    return description
