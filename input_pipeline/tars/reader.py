"""Reads samples of indexed WebDataset tars, by number; `tars.index` makes the index."""

import bisect
import hashlib
import io
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.files import listing, ranges
from input_pipeline.files.buckets import is_in_bucket, storage_path
from input_pipeline.files.cache import Cache
from input_pipeline.records import attempt, given
from input_pipeline.tars import samples

INDEX_FILE = "index.json"
# Of INDEX_FILE and of the arrays beside it; a reader refuses any other.
FORMAT_VERSION = 1

# Members of a sample that are no farther apart are read as one piece, with what is between them.
_GAP_BYTES = 2**16
_AGAIN = "Run `python -m input_pipeline.prepare index` again; what has not changed is kept."


def row_dtype(key_bytes: int, num_texts: int) -> np.dtype:
    """A sample in the array of its tar.

    image, json, txt: (offset, size) of the members in bytes, (0, 0) for none. url: see `url_hash`.
    texts: which of the tar's text fields this sample has. key: UTF-8.
    """
    member = ("<i8", (2,))
    return np.dtype(
        [
            ("image", *member),
            ("json", *member),
            ("txt", *member),
            ("url", "<u8"),
            ("texts", "?", (num_texts,)),
            ("key", f"S{key_bytes}"),
        ]
    )


def url_hash(url: str | None) -> int:
    """64 bits, 0 for no URL only. Of 30 M URLs two are confused with a chance of 2e-5."""
    if not url or not (url := url.strip()):
        return 0
    digest = hashlib.blake2b(url.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class TarReader:
    """Random access to the samples of an index, numbered through all tars.

    Construction checks that every tar is there with its full size, but opens none. Reading is
    thread-safe, one read per sample; pickling ships the list of tars only.

    Index and tars may lie on a disk or in a bucket. The arrays of an index on a disk are mapped;
    those of one in a bucket are held in memory, by every process that reads the tars.

    Attributes:
      cache: of the tars, where they lie in a bucket; None, unless it is set.

    Args:
      path: directory of the index.

    Raises:
      FileNotFoundError: no index there, or a tar or a part of the index is missing.
      ValueError: the index is damaged or of another version, or a tar has changed in size.
      OSError: a bucket does not give them.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = storage_path(path) if is_in_bucket(path) else Path(path)
        self.cache: Cache | None = None
        self._tars = _read_index(self.path)
        found = listing.statuses(self.paths())
        arrays = listing.statuses(self.path / tar["file"] for tar in self._tars)
        for tar, status, array in zip(self._tars, found, arrays):
            self._check(tar, status.size, array.size)
        self._files = [
            ranges.File(path, status.size, status.checksum)
            for path, status in zip(self.paths(), found)
        ]
        self._ends = list(itertools.accumulate(tar["samples"] for tar in self._tars))
        self._tables: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self):
        return {**self.__dict__, "_tables": {}}  # a mapped file is pickled as its contents

    def digest(self) -> bytes:
        """Of all keys, captions, and the places and sizes of the images, whose contents are not
        read: equal tars give an equal digest wherever they are."""
        digest = hashlib.sha256(f"tars {FORMAT_VERSION}".encode())
        for tar in self._tars:
            # Indexes of earlier versions know nothing of the captions.
            sums = f"{tar['sha256']} {tar['contents']}" if "contents" in tar else tar["sha256"]
            digest.update(f"{Path(tar['path']).name} {tar['bytes']} {sums}".encode())
        return digest.digest()

    def paths(self) -> list[Path | epath.Path]:
        """Of the tars."""
        return [self._tar_path(tar) for tar in self._tars]

    def text_fields(self) -> dict[str, int]:
        """Number of samples with text in a field, for each field that has any."""
        total: dict[str, int] = {}
        for tar in self._tars:
            for name, count in tar["texts"].items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items()))

    def rows_with_text(self, fields: tuple[str, ...]) -> np.ndarray | None:
        """i64[n], the samples with text in at least one of `fields`; None for all of them."""
        if all(_all_have_text(tar, fields) for tar in self._tars):
            return None
        parts = []
        for number, (tar, end) in enumerate(zip(self._tars, self._ends)):
            if _all_have_text(tar, fields):
                chosen = np.arange(tar["samples"])
            else:
                columns = [column for column, name in enumerate(tar["texts"]) if name in fields]
                chosen = np.flatnonzero(self._table(number)["texts"][:, columns].any(axis=1))
            parts.append(chosen + end - tar["samples"])
        return np.concatenate(parts)

    def url_hashes(self) -> np.ndarray:
        """u64[len], see `url_hash`."""
        return np.concatenate([self._table(n)["url"] for n in range(len(self._tars))])

    def id(self, row: int) -> str:
        """Tar stem and key, "<stem>/<key>", as in prepared data."""
        number, sample = self._find(row)
        return f"{self._files[number].path.stem}/{sample.key}"

    def images(self, rows: Sequence[int]) -> list[bytes | Exception]:
        """The images as they are stored; in place of what cannot be read its exception: ValueError
        where the tar was cut since the reader was made, else OSError."""
        return [attempt(_image, found) for found in self._read(rows, ("image",))]

    def pairs(
        self, rows: Sequence[int], fields: tuple[str, ...], split: bool
    ) -> list[tuple[bytes, dict[str, list[str]]] | Exception]:
        """Image, as it is stored, and captions by field, see `samples.read_captions`, of each row.

        In place of what cannot be read stands its exception: ValueError where a field holds
        something that is no caption, or the tar has changed, else OSError.
        """
        found = self._read(rows, ("image", "json", "txt"))
        return [attempt(self._sample, one, fields, split) for one in found]

    def _sample(self, found: tuple, fields: tuple[str, ...], split: bool):
        number, sample, pieces = found
        image = _image(found)
        try:
            return image, samples.read_captions(pieces, sample, fields, split)[0]
        except (TypeError, ValueError) as error:
            # A TypeError names the key itself.
            key = "" if isinstance(error, TypeError) else f"key {sample.key!r}: "
            raise ValueError(f"{self._files[number].path}: {key}{error}. {_AGAIN}") from None

    def _read(self, rows: Sequence[int], names: Sequence[str]) -> list[tuple | Exception]:
        """Of each row the number of its tar, the sample, and the members of these names."""
        found = [attempt(self._find, row) for row in rows]
        pieces = [[] if isinstance(one, Exception) else _pieces(one[1], names) for one in found]
        wanted = [(self._files[one[0]], *at) for one, places in zip(found, pieces) for at in places]
        contents = iter(ranges.read(wanted, self.cache))
        read = [_Pieces(places, list(itertools.islice(contents, len(places)))) for places in pieces]
        return [
            one if isinstance(one, Exception) else (*one, part) for one, part in zip(found, read)
        ]

    def _find(self, row: int) -> tuple[int, samples.Sample]:
        """The number of its tar, and the sample, whose image is its member "image"."""
        number = bisect.bisect_right(self._ends, row)
        found = self._table(number)[row - self._ends[number] + self._tars[number]["samples"]]
        places = {name: tuple(map(int, found[name])) for name in ("image", "json", "txt")}
        members = {name: place for name, place in places.items() if any(place)}
        return number, samples.Sample(found["key"].decode(), members)

    def _table(self, number: int) -> np.ndarray:
        if number not in self._tables:
            tar = self._tars[number]
            file = self.path / tar["file"]
            try:
                if is_in_bucket(file):
                    [data] = ranges.read_files([file])
                    table = np.load(io.BytesIO(given(data)), allow_pickle=False)
                else:
                    table = np.load(file, mmap_mode="r", allow_pickle=False)
            except (EOFError, ValueError) as error:
                raise ValueError(f"{file} is damaged ({error}): delete it. {_AGAIN}") from None
            if len(table) != tar["samples"]:
                raise ValueError(f"{file} does not belong to this index: delete it. {_AGAIN}")
            self._tables[number] = table
        return self._tables[number]

    def _tar_path(self, tar: dict[str, Any]) -> Path | epath.Path:
        if is_in_bucket(tar["path"]):
            return storage_path(tar["path"])
        if not is_in_bucket(self.path) or os.path.isabs(tar["path"]):
            return Path(self.path, tar["path"])  # an absolute path stays one
        scheme, _, place = os.fspath(self.path).partition("://")
        return storage_path(f"{scheme}://{os.path.normpath(os.path.join(place, tar['path']))}")

    def _check(self, tar: dict[str, Any], size: int, array_size: int) -> None:
        path = self._tar_path(tar)
        if size < 0:
            raise FileNotFoundError(
                f"Tar {path} of the index {self.path} is missing. Put it back, or index the tars "
                f"that are there. {_AGAIN}"
            )
        if size != tar["bytes"]:
            raise ValueError(
                f"Tar {path} has {size:,} bytes instead of the {tar['bytes']:,} it was indexed "
                f"with: it is truncated or was changed. {_AGAIN}"
            )
        if array_size < 0:
            raise FileNotFoundError(f"{self.path / tar['file']} is missing. {_AGAIN}")


class _Pieces:
    """Parts of a tar that were read, as the binary file that `samples.Sample.read` takes."""

    def __init__(self, places: Sequence[tuple[int, int]], contents: Sequence[bytes | Exception]):
        self._starts = [start for start, _ in places]
        self._contents, self._offset = contents, 0

    def seek(self, offset: int) -> None:
        self._offset = offset

    def read(self, size: int) -> bytes:
        if not size:
            return b""
        number = bisect.bisect_right(self._starts, self._offset) - 1
        try:
            data = given(self._contents[number])
        except ValueError as error:
            raise ValueError(f"Tar {error} {_AGAIN}") from None
        return data[self._offset - self._starts[number] :][:size]


def _pieces(sample: samples.Sample, names: Sequence[str]) -> list[tuple[int, int]]:
    """(offset, size) of what is read of a tar for some members of a sample, in order."""
    pieces: list[tuple[int, int]] = []
    for offset, size in sorted(sample.members[name] for name in names if name in sample.members):
        if pieces and offset <= sum(pieces[-1]) + _GAP_BYTES:
            first, _ = pieces[-1]
            pieces[-1] = first, offset + size - first
        elif size:
            pieces.append((offset, size))
    return pieces


def _image(found: tuple[int, samples.Sample, _Pieces]) -> bytes:
    _, sample, pieces = found
    return sample.read(pieces, "image")


def _all_have_text(tar: dict[str, Any], fields: tuple[str, ...]) -> bool:
    return any(tar["texts"].get(name) == tar["samples"] for name in fields)


def _read_index(path: Path | epath.Path) -> list[dict[str, Any]]:
    file = path / INDEX_FILE
    try:
        data = given(ranges.read_files([file])[0])
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(
            f"{file} does not exist: {path} is not an index of tars, or indexing has not finished. "
            "Make one with `python -m input_pipeline.prepare index --input 'DIR/*.tar' --output "
            f"{path}`."
        ) from None
    try:
        index = json.loads(data)
        version, tars = index["version"], index["tars"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): delete it. {_AGAIN}") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}; this code reads {FORMAT_VERSION}. Index the "
            "tars again into a new directory."
        )
    return tars
