"""Source: a data set written by `python -m input_pipeline.prepare` (ArrayRecord shards)."""

import bisect
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource

from input_pipeline import records
from input_pipeline.checks import unicode
from input_pipeline.sources.shared import base

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

    It has `class_names` and `label_rule` where they were known when it was prepared.

    Args:
      path: directory that holds the shards and their dataset.json.

    Raises:
      FileNotFoundError: no dataset.json there, or a shard is missing.
      ValueError: dataset.json is damaged or of another version, or a shard has the wrong size.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        description = _read_description(self._path)
        shards = description["shards"]
        self.class_names = description.get("class_names")
        self.label_rule = description.get("label_vocabulary")
        for shard in shards:
            file = self._path / shard["file"]
            if not file.is_file():
                raise FileNotFoundError(f"Shard {file} is missing. {_REPAIR}")
            if (size := file.stat().st_size) != shard["bytes"]:
                raise ValueError(
                    f"Shard {file} has {size:,} bytes instead of {shard['bytes']:,}: it is "
                    f"truncated or was changed. {_REPAIR}"
                )
        self._names = [shard["file"] for shard in shards]
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards))
        unicode.check(str(self._path), "The reader of shards knows no such directory")
        # Stating the range of records keeps the reader from opening every shard to count them.
        self._data = ArrayRecordDataSource(
            [
                _Part(str(self._path / shard["file"]), 0, shard["records"], shard["records"])
                for shard in shards
            ]
        )
        self._sums = [bytes.fromhex(shard["sha256"]) for shard in shards]

    def __len__(self) -> int:
        return self._ends[-1]

    def record(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          ValueError: the shard's contents are damaged.
        """
        try:
            return records.decode(self._data[index])
        except (RuntimeError, ValueError) as error:
            shard = self._path / self._names[bisect.bisect_right(self._ends, index)]
            raise ValueError(
                f"Record {index} cannot be read: shard {shard} is damaged ({error}). Delete it. "
                f"{_REPAIR}"
            ) from None

    def identity(self) -> Iterable[str | bytes]:
        """The shards' checksums."""
        return f"prepared {records.FORMAT_VERSION}", *self._sums

    def files(self) -> list[Path]:
        """The shards."""
        return [self._path / name for name in self._names]


def _read_description(path: Path) -> dict[str, Any]:
    file = path / records.DATASET_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: {path} is not a prepared data set, or preparing it has not "
            f"finished. {_REPAIR}"
        )
    try:
        description = json.loads(file.read_bytes())
        version = description["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}). {_REPAIR}") from None
    if version != records.FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}; this code reads {records.FORMAT_VERSION}. "
            "Prepare the data again into a new directory."
        )
    return description
