"""Files that are there as a whole or not at all."""

import contextlib
import glob
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from input_pipeline.files import buckets, copies, listing, ranges

TEMPORARY_SUFFIX = ".tmp"
_ABANDONED_SECONDS = 3600
_THREADS = 32  # a bucket, or a network disk, answers many at once


def finished(
    output: Path | epath.Path, description: str
) -> Iterator[tuple[Path | epath.Path, str, Any]]:
    """What earlier runs left in a directory, in the order of the names: files, and beside each one
    `<file>.json`, which is written after it and vouches for it.

    Makes the directory, and removes what is half-written but for what another machine may be at.

    Args:
      description: the file that is written last, and not given here; nor are hidden ones.

    Yields:
      (path, name of the file that it is or belongs to, contents of a JSON); None for the contents
      of the file itself, and of a JSON that cannot be read.
    """
    buckets.make_directory(output)
    remove_temporaries(output, _ABANDONED_SECONDS)
    files = [
        path
        for path in in_directory(output)
        if not path.name.startswith(".") and path.name != description
    ]

    def contents(path):
        if path.suffix == ".json":
            # Another attempt may be at it, which has removed it meanwhile.
            with contextlib.suppress(ValueError, FileNotFoundError):
                return json.loads(path.read_bytes())
        return None

    with ThreadPoolExecutor(_THREADS) as threads:
        for path, found in zip(files, threads.map(contents, files)):
            yield path, path.name.removesuffix(".json"), found


def remove_temporaries(directory: Path | epath.Path, seconds: float = 0) -> None:
    """Removes half-written files that nobody wrote to for so long.

    At the end of the work that is all of them: whoever is still at one does what is done already.
    """
    found = [
        path
        for path in in_directory(directory)
        if path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX)
    ]
    latest = time.time_ns() - int(seconds * 1e9)
    for path, status in zip(found, listing.statuses(found)):
        if not seconds or status.modified < latest:
            path.unlink(missing_ok=True)


def in_directory(path: Path | epath.Path) -> list[Path | epath.Path]:
    """The files and directories in a directory, by name; none if it is not there."""
    try:
        found = sorted(set(path.iterdir()))
    except FileNotFoundError:
        return []
    if buckets.is_in_bucket(path):  # where an empty object can stand for a directory, and is listed
        found = [p for p in found if p != path and (p.name != path.name or p.exists())]
    return found


def remove_directory(path: Path | epath.Path) -> None:
    """Removes a directory and the files in it, where it is there."""
    for file in in_directory(path):
        file.unlink(missing_ok=True)
    if not buckets.is_in_bucket(path) and path.exists():
        path.rmdir()


def parts_of(output: Path | epath.Path) -> Path | epath.Path:
    """Where what is done of a file lies, until the file is there."""
    return output.with_name(f"{output.name}.parts")


def checksum(path: Path | epath.Path) -> str:
    """SHA-256 of a file's contents, in hex."""
    with ranges.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def scratch(directory: Path | epath.Path) -> Iterator[Path]:
    """Gives a local directory for the temporary files that `place` puts into `directory`: itself,
    or one that is removed at the end."""
    if not buckets.is_in_bucket(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="big_vlp_") as folder:
        yield Path(folder)


def temporary_name(name: str) -> str:
    """A new name beside the file of this name; `remove_temporaries` knows such names."""
    # Not the process' id: those of two machines may be the same.
    return f".{name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"


def remove_abandoned(path: Path | epath.Path) -> None:
    """Removes what killed writers of this very file left beside it, where nobody else writes it."""
    if not buckets.is_in_bucket(path):
        written = f".{glob.escape(path.name)}.{32 * '[0-9a-f]'}{TEMPORARY_SUFFIX}"
        for temporary in path.parent.glob(written):
            temporary.unlink(missing_ok=True)


def place(temporary: Path, path: Path | epath.Path) -> None:
    """Makes a file in `scratch` of the path's directory the file at `path`, as a whole."""
    if buckets.is_in_bucket(path):
        copies.upload(temporary, path)
        temporary.unlink()
        return
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def vouched(path: Path | epath.Path, put: Callable[[], None], value: Any) -> None:
    """Puts a file in its place, and after it the JSON beside it that vouches for it.

    The JSON of a replaced file must not vouch for its successor, so it is removed before; but not
    one of just this value: an attempt that repeats another, and is lost on the way, takes nothing
    from what that one finished.

    Args:
      path: of the file.
      put: writes it.
      value: of the JSON.
    """
    note, data = path.with_name(f"{path.name}.json"), _encoded(value)
    with contextlib.suppress(FileNotFoundError):
        if note.read_bytes() != data:
            note.unlink()
    put()
    write_whole(note, data)


def write_json(path: Path | epath.Path, value: Any) -> None:
    """Writes JSON to `path`, which never holds half of it."""
    write_whole(path, _encoded(value))


def _encoded(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode("ascii")


def write_whole(path: Path | epath.Path, data: bytes) -> None:
    """Writes a file that is there as a whole or not at all, on a disk or in a bucket."""
    if buckets.is_in_bucket(path):
        buckets.write(path, data)
        return
    is_placed = False
    while not is_placed:
        temporary = path.with_name(temporary_name(path.name))
        try:
            temporary.write_bytes(data)  # raises where there is no such directory
            # Else another command has finished, and removed all that is half-written.
            with contextlib.suppress(FileNotFoundError):
                place(temporary, path)
                is_placed = True
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
