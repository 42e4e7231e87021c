"""Local copies of what lies in a bucket, for libraries that read files of this machine only."""

import atexit
import errno
import functools
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from input_pipeline.files.buckets import files_of, is_in_bucket, storage_path

_PART_BYTES = 16 * 2**20
_THREADS = 8


def local_copy(path: Path | epath.Path) -> Path:
    """The path itself, or that of a copy which is made once, and removed when this process ends.

    Raises:
      OSError: there is no such object, it cannot be read, or has no room here.
    """
    return _copy(os.fspath(path)) if is_in_bucket(path) else path


def upload(file: Path, path: epath.Path) -> None:
    """Writes an object of a bucket from a local file; it is there when its upload is finished."""
    files_of(path).put_file(os.fspath(file), os.fspath(path))


@functools.cache
def _copy(url: str) -> Path:
    path = storage_path(url)
    files, folder = files_of(path), Path(tempfile.mkdtemp(dir=_folder()))
    copy = folder / path.name
    before = files.info(url)
    size = before["size"]

    def read(start):
        data = files.cat_file(url, start=start, end=min(start + _PART_BYTES, size))
        with open(copy, "r+b") as file:
            file.seek(start)
            file.write(data)
        return len(data)

    try:
        copy.touch()
        with ThreadPoolExecutor(_THREADS) as threads:
            found = sum(threads.map(read, range(0, size, _PART_BYTES)))
    except OSError as error:
        copy.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"{url} needs {size / 1e9:,.1f} GB here for a copy: make room in "
                f"{tempfile.gettempdir()}, or set TMPDIR to another directory"
            ) from error
        raise
    if found != size or files.info(url) != before:
        copy.unlink()
        raise OSError(f"{url} was changed while it was read")
    return copy


@functools.cache
def _folder() -> str:
    folder = tempfile.TemporaryDirectory(prefix="big_vlp_")
    atexit.register(folder.cleanup)
    return folder.name
