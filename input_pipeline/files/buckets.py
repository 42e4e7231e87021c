"""Paths that may lie in a bucket: gs://BUCKET/... for what reads and writes whole files.

Such a path has the methods of pathlib's (etils.epath). What fails is an OSError, as it is for a
disk; where it may pass by itself it was tried again before, which is told, and is `Unreachable`.
"""

import functools
import importlib.util
import logging
import os
import re
from pathlib import Path

import absl.logging

# Else epath would go through TensorFlow wherever that is installed, whose errors are no OSErrors.
os.environ.setdefault("EPATH_USE_TF", "false")
from etils import epath

from input_pipeline.checks.paths import PathError, local_path

# gcsfs takes them for a pattern, and Orbax the last for the end of the path.
_REFUSED = set("*?[]#")
# Scheme of a URL: (the package that reads and writes it, the extra of this one that brings it).
_SCHEMES = {"gs": ("gcsfs", "gcs")}


class Unreachable(OSError):
    """A bucket did not answer, or would not now: a fault that may pass by itself."""


def storage_path(given: str | os.PathLike) -> Path | epath.Path:
    """A path as `checks.paths.local_path` gives, or one in a bucket.

    Raises:
      PathError: it is another URL, or empty, or names no bucket, or the package for it is missing.
    """
    text = os.fspath(given)
    scheme, _, rest = text.partition("://") if isinstance(text, str) else ("", "", "")
    if scheme not in _SCHEMES:
        return local_path(given)
    package, extra = _SCHEMES[scheme]
    if not rest.strip("/"):
        raise PathError(f"{text!r} names no bucket; give {scheme}://BUCKET/DIRECTORY.")
    if found := set(rest) & _REFUSED:
        raise PathError(f"{text!r}: give a name without {' '.join(sorted(found))}.")
    if importlib.util.find_spec(package) is None:
        raise PathError(f"{text!r} needs {package}: install big_vlp's extra [{extra}].")
    _connect()
    return epath.Path(text.rstrip("/"))


def is_in_bucket(path: os.PathLike) -> bool:
    return "://" in os.fspath(path)


def make_directory(path: Path | epath.Path) -> None:
    """Makes a directory and its parents; buckets have none, and are made by their owner only."""
    if not is_in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def write(path: epath.Path, data: bytes) -> None:
    """Writes an object of a bucket; it is there when its upload is finished."""
    _files(path).pipe_file(os.fspath(path), data)


def create(path: Path | epath.Path, data: bytes) -> None:
    """Writes a file that must be new: one of several who try it at once succeeds.

    Raises:
      FileExistsError
    """
    if is_in_bucket(path):
        _files(path).pipe_file(os.fspath(path), data, mode="create")
        return
    with open(path, "xb") as file:
        try:
            file.write(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _files(path: epath.Path):
    import fsspec

    return fsspec.filesystem(os.fspath(path).partition("://")[0])


@functools.cache
def _connect() -> None:
    """Before the first use: the file system of these URLs becomes ours, for all libraries."""
    # It would ask each bucket for its type over gRPC, which proxies and emulators do not answer.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import aiohttp
    import fsspec
    import gcsfs
    import requests
    from gcsfs.retry import ChecksumError, HttpError
    from google.auth.exceptions import GoogleAuthError

    passing = (ChecksumError, TimeoutError, aiohttp.ClientError, requests.RequestException)

    class GoogleFiles(gcsfs.GCSFileSystem):
        async def _call(self, method, path, *args, **options):
            try:
                return await super()._call(method, path, *args, **options)
            except FileNotFoundError as error:
                if method == "POST" and "/upload/" in path:
                    bucket = re.search(r"/b/([^/]+)", path)
                    name = bucket[1] if bucket else path
                    raise FileNotFoundError(f"there is no bucket {name!r}") from error
                raise
            except passing as error:
                raise Unreachable(_text(error)) from error
            except HttpError as error:
                passes = str(error.code) in ("408", "429") or str(error.code)[:1] == "5"
                raise (Unreachable if passes else OSError)(_text(error)) from error
            except (GoogleAuthError, ValueError) as error:
                raise OSError(_text(error)) from error

    fsspec.register_implementation("gs", GoogleFiles, clobber=True)
    fsspec.register_implementation("gcs", GoogleFiles, clobber=True)
    # No list of files is remembered: others write there, too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    log = logging.getLogger("gcsfs")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.handlers = [_Retries()]


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


class _Retries(logging.Handler):
    """Tells of requests that are made again; the last failure is an error anyway."""

    def emit(self, record):
        text = record.getMessage()
        if "retrying after exception" in text:
            reason = text.partition("exception:")[2].strip() or "no answer"
            absl.logging.warning("Storage: %s; trying again.", reason.splitlines()[0])
