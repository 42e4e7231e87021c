"""Files that are there as a whole or not at all."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON to `path`, which never holds half of it."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode("ascii"))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there as a whole or not at all."""
    # Not the process' id: those of two machines may be the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
