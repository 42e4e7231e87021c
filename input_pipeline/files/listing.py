"""Many files at once: found by a pattern, checked, and told apart from what they were before."""

import functools
import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# How the names of images end, in lower case: of the formats that are decoded.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp"),
    *("avif", "bmp", "gif", "tif", "tiff"),
)

_NAMED = 5
_STATUS_THREADS = 32  # a network disk answers many at once
_STATUS_PART = 1000


def find(pattern: str | os.PathLike) -> list[Path]:
    """The files that a path or pattern means, in the order of their names.

    Patterns know *, ?, [0-9] and **. As much of the beginning as exists under that very name is
    taken by its name, so that files and folders may be called "data[1]".

    Raises:
      ValueError: two files have one name but for the ending: their records would have equal ids.
    """
    parts = Path(os.path.expanduser(pattern)).parts
    taken = len(parts)
    while taken and not os.path.lexists(os.path.join(*parts[:taken])):
        taken -= 1
    found = [os.path.join("", *parts[:taken])]
    if taken < len(parts):
        literal = glob.escape(found[0])
        found = glob.glob(os.path.join(literal, *parts[taken:]), recursive=True)
    once = sorted({Path(name) for name in found if os.path.isfile(name)})  # "**/**" repeats them
    files = sorted(once, key=lambda f: f.name)
    known: dict[str, Path] = {}
    for file in files:
        if (other := known.setdefault(file.stem, file)) is not file:
            raise ValueError(
                f"{other} and {file} would give the same shard name and record ids: rename one, or "
                "make two data sets of them."
            )
    return files


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
            folders[folder] = _list(folder)
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
    as behind a broken link, which whoever reads it will name."""
    paths = list(paths)
    parts = [paths[i : i + _STATUS_PART] for i in range(0, len(paths), _STATUS_PART)]
    with ThreadPoolExecutor(_STATUS_THREADS) as pool:
        found = [row for rows in pool.map(_status, parts) for row in rows]
    return np.array(found, "<i8").reshape(-1, 2)


def _status(paths: Sequence[str | os.PathLike]) -> list[tuple[int, int]]:
    rows = []
    for path in paths:
        try:
            found = os.stat(path)
            rows.append((found.st_size, found.st_mtime_ns))
        except OSError:
            rows.append((-1, -1))
    return rows


def contents_digest(path: str | os.PathLike) -> bytes:
    """Of a whole file: about a second per gigabyte, but only once while the file stays as it is."""
    found = os.stat(path)
    return _contents_digest(os.fspath(path), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _contents_digest(path: str, size: int, modified: int) -> bytes:
    del size, modified  # a file that was changed is read anew
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def fingerprint(*parts: str | bytes) -> str:
    """16 hex digits of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        # Names of files may hold bytes that are no text.
        digest.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _list(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return set()
