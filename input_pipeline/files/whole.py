"""Files that are there as a whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.files import buckets

TEMPORARY_SUFFIX = ".tmp"


def finished(output: Path, description: str) -> Iterator[tuple[Path, str, Any]]:
    """What earlier runs left in a directory, in the order of the names: files, and beside each one
    `<file>.json`, which is written after it and vouches for it.

    Makes the directory, and removes what is half-written.

    Args:
      description: the file that is written last, and not given here; nor are hidden ones.

    Yields:
      (path, name of the file that it is or belongs to, contents of a JSON); None for the contents
      of the file itself, and of a JSON that cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    for path in output.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
    for path in sorted(output.iterdir()):
        if path.name == description or path.name.startswith("."):
            continue
        file, contents = path.name.removesuffix(".json"), None
        if path.name != file:
            with contextlib.suppress(ValueError):
                contents = json.loads(path.read_bytes())
        yield path, file, contents


def write_json(path: Path, value: Any) -> None:
    """Writes JSON to `path`, which never holds half of it."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode("ascii"))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there as a whole or not at all, on a disk or in a bucket."""
    if buckets.is_in_bucket(path):
        buckets.write(path, data)
        return
    # Not the process' id: those of two machines may be the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
