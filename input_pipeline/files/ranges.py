"""Parts of files, read many at once, on a disk or in a bucket, which is slow to answer each."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from input_pipeline.files.buckets import files_of, is_in_bucket, storage_path

_MAX_OPEN_FILES = 256
# Requests under way at a time, and what one of a file that is read from end to end asks for.
_AT_ONCE = 64
_READ_AHEAD = 16 * 2**20


@dataclass(frozen=True)
class File:
    """A file whose contents stay as they are.

    Attributes:
      path: of it.
      size: in bytes.
      checksum: "sha256:HEX" or "md5:HEX", or what else a store tells versions apart by.
    """

    path: Path | epath.Path
    size: int
    checksum: str = ""


def source_path(given: str | os.PathLike) -> Path | epath.Path:
    """The path of data, which on a disk stays as it is given.

    Raises:
      PathError: a URL that cannot be read.
    """
    return storage_path(given) if is_in_bucket(given) else Path(given)


def disk_path(given: str | os.PathLike, what: str) -> Path:
    """The path of data that can be read from a disk alone.

    Raises:
      ValueError: it lies in a bucket.
    """
    if is_in_bucket(given):
        raise ValueError(
            f"{os.fspath(given)} is in a bucket, and {what} from a disk alone: mount the bucket "
            "(gcsfuse, s3fs) or copy it, and give that path, or prepare the data once where it can "
            "be read (`python -m input_pipeline.prepare source`) and train from the shards, which "
            "may lie in a bucket."
        )
    return Path(given)


def open_file(path: Path | epath.Path) -> BinaryIO:
    """A file to be read from its beginning to its end."""
    if not is_in_bucket(path):
        return open(path, "rb")
    # gcsfs' own choice of a cache asks for each header of a tar by itself.
    return files_of(path).open(
        os.fspath(path), "rb", block_size=_READ_AHEAD, cache_type="readahead"
    )


def read_files(paths: Sequence[str | os.PathLike]) -> list[bytes | Exception]:
    """The contents of whole files; what cannot be read stands there as its exception."""
    found: list[Any] = [None] * len(paths)
    remote = [i for i, path in enumerate(paths) if is_in_bucket(path)]
    for i in set(range(len(paths))).difference(remote):
        try:
            found[i] = Path(paths[i]).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            found[i] = error
    _read_remote(found, remote, [(paths[i], None, None) for i in remote])
    return found


def read(wanted: Sequence[tuple[File, int, int]], cache: Any = None) -> list[bytes | Exception]:
    """Parts of files: (file, offset, size) of each, in bytes.

    Args:
      cache: `files.cache.Cache`, for files in a bucket.

    Returns:
      What was read; in place of what was not, OSError, or ValueError where a file was cut.
    """
    found: list[Any] = [None] * len(wanted)
    remote = []
    for i, (file, offset, size) in enumerate(wanted):
        path = file.path
        if is_in_bucket(path):
            path = None if cache is None else cache.find(file)
        try:
            found[i] = None if path is None else _open(str(path), file.size).read_at(offset, size)
        except (OSError, ValueError) as error:
            found[i] = None if is_in_bucket(file.path) else error  # a copy that is not there now
        if found[i] is None:
            remote.append(i)
    parts = [(wanted[i][0].path, wanted[i][1], wanted[i][1] + wanted[i][2]) for i in remote]
    _read_remote(found, remote, parts)
    for i in remote:
        if isinstance(found[i], bytes) and len(found[i]) != wanted[i][2]:
            found[i] = _was_cut(wanted[i][0].path)
    return found


def _read_remote(found: list[Any], places: Sequence[int], parts: Sequence[tuple]) -> None:
    """Puts (path, first byte, behind the last) of each part into its place."""
    schemes = {os.fspath(path).partition("://")[0] for path, _, _ in parts}
    for scheme in schemes:
        chosen = [
            (place, os.fspath(path), start, end)
            for place, (path, start, end) in zip(places, parts)
            if os.fspath(path).startswith(f"{scheme}://")
        ]
        _, names, starts, ends = map(list, zip(*chosen))
        contents = files_of(names[0]).cat_ranges(
            names, starts, ends, batch_size=_AT_ONCE, on_error="return"
        )
        for (place, name, _, _), content in zip(chosen, contents):
            if isinstance(content, FileNotFoundError):
                content = FileNotFoundError(f"{name} does not exist.")
            found[place] = content


class _Open:
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
            raise _was_cut(self._path)
        return data


# Opening costs a round trip on a network disk, but there are more files than may be open.
# A file that falls out of the cache is closed after the read that is under way.
@functools.lru_cache(maxsize=_MAX_OPEN_FILES)
def _open(path: str, size: int) -> _Open:
    del size  # a file that was replaced is opened anew
    return _Open(path)


def _was_cut(path: Path | epath.Path | str) -> ValueError:
    return ValueError(f"{path} was cut or changed.")
