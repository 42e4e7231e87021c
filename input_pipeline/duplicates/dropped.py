"""Lists of records that a data set is to be made without: parquet, a row per record.

A record is known by its id and the digest of its image, so that a list may be of several data sets
whose ids are the same. Other columns say why.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from etils import epath

from input_pipeline.duplicates import signatures
from input_pipeline.files import listing
from input_pipeline.files.ranges import open_file, source_path
from input_pipeline.prepare.filters import Tally

REASONS = EXACT, NEAR, CONTAMINATED = "exact duplicate", "near duplicate", "contaminated"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("digest", pa.binary(signatures.DIGEST_BYTES)),
        ("data", pa.string()),
        ("reason", pa.string()),
        ("match", pa.string()),
        ("match_data", pa.string()),
        ("distance", pa.uint8()),
    ]
)
_NEEDED = ("id", "digest", "reason")

Samples = Iterable[tuple[str, dict[str, Any]]]


def fingerprint(path: Path | epath.Path) -> str:
    """16 hex digits of a list's contents.

    Raises:
      ValueError: the file is no such list.
      FileNotFoundError
    """
    with open_file(path) as file:
        try:
            schema = pa.parquet.read_schema(file)
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    for name in _NEEDED:
        if name not in schema.names or schema.field(name).type != SCHEMA.field(name).type:
            raise ValueError(
                f"{path} is no list of records to drop: it has no column {name!r} of type "
                f"{SCHEMA.field(name).type}, as `python -m input_pipeline.duplicates find` writes."
            )
    return listing.fingerprint(listing.contents_digest(path))


class Dropped:
    """The records of a list, which are held as 17 bytes each."""

    def __init__(self, path: Path | epath.Path):
        with open_file(path) as file:
            table = pa.parquet.read_table(file, columns=list(_NEEDED))
        reasons = table["reason"].combine_chunks().dictionary_encode()
        self._reasons = reasons.dictionary.to_pylist()
        keys = np.empty(len(table), np.dtype((np.void, 16)))
        place = 0
        for batch in table.to_batches(max_chunksize=1 << 16):
            for id_, digest in zip(*(batch[name].to_pylist() for name in ("id", "digest"))):
                keys[place] = _key(id_, digest)
                place += 1
        keys = keys.view(">u8").reshape(-1, 2)
        order = np.lexsort(keys.T[::-1])
        self._keys = keys[order].astype("u8")
        self._numbers = reasons.indices.to_numpy()[order].astype(np.uint8)

    def reason(self, record: dict[str, Any]) -> str | None:
        """Why a record is on the list; None if it is not."""
        key = _key(record["id"], signatures.digest(record["image"]))
        first, second = np.frombuffer(key, ">u8").astype("u8")
        place = np.searchsorted(self._keys[:, 0], first)
        while place < len(self._keys) and self._keys[place, 0] == first:
            if self._keys[place, 1] == second:
                return self._reasons[self._numbers[place]]
            place += 1
        return None


def _key(id_: str, digest: bytes) -> bytes:
    return signatures.digest(digest + id_.encode("utf-8", "surrogatepass"))


@functools.lru_cache(maxsize=2)
def _kept(path: str, fingerprint: str) -> Dropped:
    del fingerprint  # a list that was changed is read anew
    return Dropped(source_path(path))


def without(
    read: Callable[[Tally], Samples], path: str, fingerprint: str, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples that `read(tally)` yields but for those on a list, which are counted in `tally`.

    Args:
      path, fingerprint: of the list.
    """
    listed = _kept(path, fingerprint)
    for key, record in read(tally):
        reason = listed.reason(record) if isinstance(record.get("image"), bytes) else None
        if reason is None:
            yield key, record
        else:
            tally.drop(key, reason)
