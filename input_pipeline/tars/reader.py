"""Reads samples of indexed WebDataset tars, by number; `tars.index` makes the index."""

import bisect
import functools
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.tars import samples

INDEX_FILE = "index.json"
# Of INDEX_FILE and of the arrays beside it; a reader refuses any other.
FORMAT_VERSION = 1

_MAX_OPEN_FILES = 256
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
    thread-safe, one read per member; pickling ships the list of tars only.

    Args:
      path: directory of the index.

    Raises:
      FileNotFoundError: no index there, or a tar or a part of the index is missing.
      ValueError: the index is damaged or of another version, or a tar has changed in size.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._tars = _read_index(self.path)
        for tar in self._tars:
            self._check(tar)
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

    def paths(self) -> list[Path]:
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
        return f"{Path(self._tars[number]['path']).stem}/{sample['key'].decode()}"

    def image(self, row: int) -> bytes:
        """The image as it is stored.

        Raises:
          ValueError: the tar was cut since the reader was made.
        """
        number, sample = self._find(row)
        offset, size = map(int, sample["image"])
        return self._file(number).read_at(offset, size)

    def captions(self, row: int, fields: tuple[str, ...], split: bool) -> dict[str, list[str]]:
        """Captions by field, see `samples.read_captions`.

        Raises:
          ValueError: a field holds something that is no caption, or the tar has changed.
        """
        number, sample = self._find(row)
        members = {
            name: tuple(map(int, sample[name])) for name in ("json", "txt") if sample[name].any()
        }
        found = samples.Sample(sample["key"].decode(), members)
        try:
            return samples.read_captions(_Cursor(self._file(number)), found, fields, split)[0]
        except (TypeError, ValueError) as error:
            tar = self._tar_path(self._tars[number])
            # A TypeError names the key itself.
            key = "" if isinstance(error, TypeError) else f"key {found.key!r}: "
            raise ValueError(f"{tar}: {key}{error}. {_AGAIN}") from None

    def _find(self, row: int) -> tuple[int, np.void]:
        number = bisect.bisect_right(self._ends, row)
        first = self._ends[number] - self._tars[number]["samples"]
        return number, self._table(number)[row - first]

    def _table(self, number: int) -> np.ndarray:
        if number not in self._tables:
            tar = self._tars[number]
            file = self.path / tar["file"]
            try:
                table = np.load(file, mmap_mode="r", allow_pickle=False)
            except (EOFError, ValueError) as error:
                raise ValueError(f"{file} is damaged ({error}): delete it. {_AGAIN}") from None
            if len(table) != tar["samples"]:
                raise ValueError(f"{file} does not belong to this index: delete it. {_AGAIN}")
            self._tables[number] = table
        return self._tables[number]

    def _file(self, number: int) -> "_File":
        tar = self._tars[number]
        return _open(str(self._tar_path(tar)), tar["bytes"])

    def _tar_path(self, tar: dict[str, Any]) -> Path:
        return self.path / tar["path"]  # an absolute path stays one

    def _check(self, tar: dict[str, Any]) -> None:
        path = self._tar_path(tar)
        if not path.is_file():
            raise FileNotFoundError(
                f"Tar {path} of the index {self.path} is missing. Put it back, or index the tars "
                f"that are there. {_AGAIN}"
            )
        if (size := path.stat().st_size) != tar["bytes"]:
            raise ValueError(
                f"Tar {path} has {size:,} bytes instead of the {tar['bytes']:,} it was indexed "
                f"with: it is truncated or was changed. {_AGAIN}"
            )
        if not (self.path / tar["file"]).is_file():
            raise FileNotFoundError(f"{self.path / tar['file']} is missing. {_AGAIN}")


class _File:
    """Positional reads, which threads can share; closed when nobody holds it any more."""

    def __init__(self, path: str):
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read_at(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise ValueError(f"Tar {self._path} was cut or changed. {_AGAIN}")
        return data


class _Cursor:
    """The part of a binary file that `samples.Sample.read` uses."""

    def __init__(self, file: _File):
        self._file, self._offset = file, 0

    def seek(self, offset: int) -> None:
        self._offset = offset

    def read(self, size: int) -> bytes:
        return self._file.read_at(self._offset, size)


# Opening costs a round trip on a network disk, but there are more tars than files may be open.
# A file that falls out of the cache is closed after the read that is under way.
@functools.lru_cache(maxsize=_MAX_OPEN_FILES)
def _open(path: str, size: int) -> _File:
    del size  # a tar that was replaced is opened anew
    return _File(path)


def _all_have_text(tar: dict[str, Any], fields: tuple[str, ...]) -> bool:
    return any(tar["texts"].get(name) == tar["samples"] for name in fields)


def _read_index(path: Path) -> list[dict[str, Any]]:
    file = path / INDEX_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: {path} is not an index of tars, or indexing has not finished. "
            "Make one with `python -m input_pipeline.prepare index --input 'DIR/*.tar' --output "
            f"{path}`."
        )
    try:
        index = json.loads(file.read_bytes())
        version, tars = index["version"], index["tars"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): delete it. {_AGAIN}") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}; this code reads {FORMAT_VERSION}. Index the "
            "tars again into a new directory."
        )
    return tars
