"""Source: a data set written by `python -m input_pipeline.prepare` (ArrayRecord shards)."""

import bisect
import itertools
import json
import operator
import os
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource

from input_pipeline import records
from input_pipeline.checks import unicode
from input_pipeline.files.listing import fingerprint

_REPAIR = "Re-run prepare with the same options; finished shards are kept."


class _Part(NamedTuple):
    """Records of a file, as the reader takes them where its name may hold any character."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Source:
    """Random access to the records of one prepared data set.

    Construction checks that every shard is there with its full size, but opens none: shards are
    opened on first use, once per process. Reading is thread-safe; pickling ships file names only.

    Attributes, where the data set has them:
      class_names: of the records' `label`.
      label_vocabulary: fingerprint of the vocabulary that their `labels` were stored with.
      num_label_classes: size of that vocabulary.
      label_rule: the vocabulary and the rest of what decided them, see `labelling.LabelRule`.

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
        if "class_names" in description:
            self.class_names = description["class_names"]
        if "label_vocabulary" in description:
            self.label_rule = description["label_vocabulary"]
            self.label_vocabulary = self.label_rule["fingerprint"]
            self.num_label_classes = self.label_rule["size"]
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
        sums = [bytes.fromhex(shard["sha256"]) for shard in shards]
        self._fingerprint = fingerprint(f"prepared {records.FORMAT_VERSION}", *sums)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          IndexError: `index` is not in [0, len).
          ValueError: the shard's contents are damaged.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(
                f"Index {index} is out of range: {self._path} has {len(self)} records."
            )
        try:
            return records.decode(self._data[index])
        except (RuntimeError, ValueError) as error:
            shard = self._path / self._names[bisect.bisect_right(self._ends, index)]
            raise ValueError(
                f"Record {index} cannot be read: shard {shard} is damaged ({error}). Delete it. "
                f"{_REPAIR}"
            ) from None

    def fingerprint(self) -> str:
        """16 hex digits of the shards' checksums: equal contents, equal fingerprint, wherever they
        are stored."""
        return self._fingerprint

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
