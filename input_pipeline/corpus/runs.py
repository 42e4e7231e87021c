"""Files of sorted runs: hashes, or records that begin with one, of which a range of values is read
without the others."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from input_pipeline.corpus import jobs
from input_pipeline.files import whole
from input_pipeline.files.copies import local_copy

RUN = 2**18  # records that are sorted


def write(path: Path | epath.Path, parts: Iterable[np.ndarray], kind: np.dtype) -> None:
    """Writes records, which come in parts, in runs of `RUN` that are sorted; the file appears as a
    whole."""
    with jobs.temporary(path.parent, path.name) as temporary:
        with open(temporary, "wb") as file:
            waiting, count = [np.zeros(0, kind)], 0
            for part in parts:
                waiting.append(part)
                count += len(part)
                while count >= RUN:
                    records = np.concatenate(waiting)
                    file.write(_sorted(records[:RUN]).tobytes())
                    waiting, count = [records[RUN:]], count - RUN
            file.write(_sorted(np.concatenate(waiting)).tobytes())
        whole.place(temporary, path)


def between(path: Path | epath.Path, kind: np.dtype, low: int, high: int) -> Iterator[np.ndarray]:
    """Of each run the records whose hash is in [low, high), mapped."""
    data = mapped(path, kind)
    for start in range(0, len(data), RUN):
        run = data[start : start + RUN]
        first = np.searchsorted(_hashes(run), np.uint64(low))
        end = np.searchsorted(_hashes(run), np.uint64(high - 1), "right")
        yield run[first:end]


def mapped(path: Path | epath.Path, kind: np.dtype) -> np.ndarray:
    """The records of a file, mapped and not read; of one in a bucket there is a local copy."""
    copy = local_copy(path)
    return np.memmap(copy, kind, "r") if copy.stat().st_size else np.zeros(0, kind)


def _sorted(records: np.ndarray) -> np.ndarray:
    return records[np.argsort(_hashes(records), kind="stable")]


def _hashes(records: np.ndarray) -> np.ndarray:
    return records[records.dtype.names[0]] if records.dtype.names else records
