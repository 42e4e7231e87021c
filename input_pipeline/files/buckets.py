"""Paths that may lie in a bucket, gs://BUCKET/... or s3://BUCKET/..., for what reads and writes
whole files.

Such a path has the methods of pathlib's (etils.epath). What fails is an OSError, as it is for a
disk; where it may pass by itself it was tried again before, which is told, and is
`outages.Unreachable`.
"""

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

# Else epath would go through TensorFlow wherever that is installed, whose errors are no OSErrors.
os.environ.setdefault("EPATH_USE_TF", "false")
from etils import epath

from input_pipeline.checks.paths import PathError, local_path
from input_pipeline.files import amazon, google

# gcsfs takes them for a pattern, and Orbax the last for the end of the path.
_REFUSED = set("*?[]#")
# Scheme of a URL: (the package that reads and writes it, the extra of this one that brings it, what
# makes it known).
_SCHEMES = {"gs": ("gcsfs", "gcs", google.connect), "s3": ("s3fs", "s3", amazon.connect)}


def storage_path(given: str | os.PathLike) -> Path | epath.Path:
    """A path as `checks.paths.local_path` gives, or one in a bucket.

    Raises:
      PathError: it is another URL, or empty, or names no bucket, or the package for it is missing.
    """
    text = os.fspath(given)
    scheme, _, rest = text.partition("://") if isinstance(text, str) else ("", "", "")
    if scheme not in _SCHEMES:
        return local_path(given)
    package, extra, connect = _SCHEMES[scheme]
    if not rest.strip("/"):
        raise PathError(f"{text!r} names no bucket; give {scheme}://BUCKET/DIRECTORY.")
    if found := set(rest) & _REFUSED:
        raise PathError(f"{text!r}: give a name without {' '.join(sorted(found))}.")
    if importlib.util.find_spec(package) is None:
        raise PathError(f"{text!r} needs {package}: install big_vlp's extra [{extra}].")
    _once(connect)
    return epath.Path(text.rstrip("/"))


def is_in_bucket(path: os.PathLike) -> bool:
    return "://" in os.fspath(path)


def make_directory(path: Path | epath.Path) -> None:
    """Makes a directory and its parents; buckets have none, and are made by their owner only."""
    if not is_in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def write(path: epath.Path, data: bytes) -> None:
    """Writes an object of a bucket; it is there when its upload is finished."""
    files_of(path).pipe_file(os.fspath(path), data)


def create(path: Path | epath.Path, data: bytes) -> None:
    """Writes a file that must be new: one of several who try it at once succeeds.

    Raises:
      FileExistsError
    """
    if is_in_bucket(path):
        files_of(path).pipe_file(os.fspath(path), data, mode="create")
        return
    with open(path, "xb") as file:
        try:
            file.write(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def files_of(path: str | os.PathLike) -> Any:
    """fsspec's file system for a path in a bucket; the path may come from another process."""
    import fsspec

    scheme = os.fspath(path).partition("://")[0]
    _once(_SCHEMES[scheme][2])
    return fsspec.filesystem(scheme)


@functools.cache
def _once(connect) -> None:
    connect()
