"""Many files at once: found by a pattern, checked, and told apart from what they were before.

In a bucket a folder is listed once, instead of asking for each file.
"""

import base64
import datetime
import functools
import glob
import hashlib
import os
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from input_pipeline.files.buckets import files_of, is_in_bucket, storage_path
from input_pipeline.files.ranges import open_file

# How the names of images end, in lower case: of the formats that are decoded.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp"),
    *("avif", "bmp", "gif", "tif", "tiff"),
)

_NAMED = 5
_STATUS_THREADS = 32  # a network disk answers many at once
_STATUS_PART = 1000


class Status(NamedTuple):
    """What is known of a file without reading it: size in bytes, modification time in ns, and, in a
    bucket, what its contents are told by ("md5:HEX", or a tag)."""

    size: int = -1
    modified: int = -1
    checksum: str = ""


def find(pattern: str | os.PathLike) -> list[Path | epath.Path]:
    """The files that a path or pattern means, in the order of their names.

    Patterns know *, ?, [0-9] and **. As much of the beginning as exists under that very name is
    taken by its name, so that files and folders may be called "data[1]"; but in a bucket.

    Raises:
      ValueError: two files have one name but for the ending: their records would have equal ids.
      PathError: a file in a bucket has a name with one of *?[]#.
    """
    files = sorted(matches(pattern), key=lambda f: f.name)
    known: dict[str, Path] = {}
    for file in files:
        if (other := known.setdefault(file.stem, file)) is not file:
            raise ValueError(
                f"{other} and {file} would give the same shard name and record ids: rename one, or "
                "make two data sets of them."
            )
    return files


def matches(pattern: str | os.PathLike) -> list[Path | epath.Path]:
    """As `find`, but names may be equal; in the order of the paths."""
    return _find_in_bucket(os.fspath(pattern)) if is_in_bucket(pattern) else _find(pattern)


def _find_in_bucket(pattern: str) -> list[epath.Path]:
    scheme, _, rest = pattern.partition("://")
    bucket = storage_path(f"{scheme}://{rest.partition('/')[0]}")
    try:
        found = files_of(bucket).glob(rest, detail=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no bucket {os.fspath(bucket)!r}.") from None
    names = [name for name, info in found.items() if info["type"] == "file"]
    return [storage_path(f"{scheme}://{name}") for name in sorted(names)]


def _find(pattern: str | os.PathLike) -> list[Path]:
    parts = Path(os.path.expanduser(pattern)).parts
    taken = len(parts)
    while taken and not os.path.lexists(os.path.join(*parts[:taken])):
        taken -= 1
    found = [os.path.join("", *parts[:taken])]
    if taken < len(parts):
        literal = glob.escape(found[0])
        found = glob.glob(os.path.join(literal, *parts[taken:]), recursive=True)
    return sorted({Path(name) for name in found if os.path.isfile(name)})  # "**/**" repeats them


def check_images(root: str | os.PathLike, names: Iterable[str]) -> None:
    """Checks that all files are there, listing every folder once instead of asking for each file.

    Args:
      root: directory that `names` start from.
      names: of the files; an absolute one stays as it is.

    Raises:
      FileNotFoundError: says how many are missing, and names the first few.
      ValueError: a name is no string.
    """
    folders: dict[str, set[str]] = {}
    missing, count = [], 0
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name of an image file.")
        count += 1
        folder, file = os.path.split(os.path.join(root, name))
        if folder not in folders:
            folders[folder] = names_in(folder)
        if file not in folders[folder]:
            missing.append(os.path.join(folder, file))
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {count:,} images are missing: {', '.join(missing[:_NAMED])}"
            f"{', ...' if len(missing) > _NAMED else ''}. Is {os.fspath(root)!r} the directory "
            "that their names start from?"
        )


def status(paths: Iterable[str | os.PathLike]) -> np.ndarray:
    """i64[n, 2]: size in bytes and modification time in ns of each file; -1 where there is none,
    as behind a broken link, which whoever reads it will name.

    Raises:
      OSError: a bucket does not tell.
    """
    return np.array([found[:2] for found in statuses(paths)], "<i8").reshape(-1, 2)


def statuses(paths: Iterable[str | os.PathLike]) -> list[Status]:
    """Of each file; `Status()` where there is none.

    Raises:
      OSError: a bucket does not tell.
    """
    paths = [os.fspath(path) for path in paths]
    listed = {
        folder: _list(folder) for folder in {posixpath.dirname(p) for p in paths if "://" in p}
    }
    parts = [paths[i : i + _STATUS_PART] for i in range(0, len(paths), _STATUS_PART)]
    with ThreadPoolExecutor(_STATUS_THREADS) as pool:
        found = pool.map(functools.partial(_statuses, listed), parts)
        return [row for rows in found for row in rows]


def _statuses(listed: dict[str, dict[str, Status]], paths: Sequence[str]) -> list[Status]:
    rows = []
    for path in paths:
        if "://" in path:
            folder, name = posixpath.split(path)
            rows.append(listed[folder].get(name, Status()))
            continue
        try:
            found = os.stat(path)
            rows.append(Status(found.st_size, found.st_mtime_ns))
        except OSError:
            rows.append(Status())
    return rows


def _list(folder: str) -> dict[str, Status]:
    """The files of a folder in a bucket; none where there is no such folder."""
    try:
        entries = files_of(folder).ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    return {posixpath.basename(e["name"]): _status(e) for e in entries if e["type"] == "file"}


def _status(entry: dict[str, Any]) -> Status:
    """Of what Google's or Amazon's file system says of an object."""
    modified = entry.get("updated") or entry.get("LastModified") or 0
    if isinstance(modified, str):
        modified = datetime.datetime.fromisoformat(modified.replace("Z", "+00:00"))
    if isinstance(modified, datetime.datetime):
        since = modified - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        modified = since // datetime.timedelta(microseconds=1) * 1000
    if "md5Hash" in entry:
        checksum = f"md5:{base64.b64decode(entry['md5Hash']).hex()}"
    else:
        checksum = str(entry.get("ETag") or entry.get("generation") or "").strip('"')
    return Status(int(entry["size"]), modified, checksum)


def contents_digest(path: str | os.PathLike) -> bytes:
    """Of a whole file: about a second per gigabyte, but only once while the file stays as it is."""
    if is_in_bucket(path):
        [found] = statuses([path])
        return _contents_digest(os.fspath(path), *found)
    found = os.stat(path)
    return _contents_digest(os.fspath(path), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _contents_digest(path: str, *status: int | str) -> bytes:
    del status  # a file that was changed is read anew
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def fingerprint(*parts: str | bytes) -> str:
    """16 hex digits of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        # Names of files may hold bytes that are no text.
        digest.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def names_in(folder: str | os.PathLike) -> set[str]:
    """Of the files of a folder, none where there is no such folder; those of folders, too, but in a
    bucket.

    Raises:
      OSError: a bucket does not tell.
    """
    if is_in_bucket(folder):
        return set(_list(os.fspath(folder)))
    try:
        return set(os.listdir(folder or "."))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return set()
