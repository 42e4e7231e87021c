"""A file of lines that grows, on a disk or in a bucket, where nothing can be appended."""

import contextlib
import os
import re
from pathlib import Path

from etils import epath

from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.files.whole import write_whole

# Of a part in a bucket: so much at most is written again for a line that is added.
PART_BYTES = 256 * 1024


class Lines:
    """The lines of one file. In a bucket they lie in parts, NAME and NAME-00001.EXT and so on, of
    which the last is written anew whenever a line is added.

    Args:
      path: of the file; in a bucket, of the first part.
    """

    def __init__(self, path: Path | epath.Path):
        self.path = path
        self._number, self._last = 0, None  # the part that grows, and what it holds

    def exists(self) -> bool:
        return self.path.exists()

    def text(self) -> str:
        """All of it. Raises FileNotFoundError where there is none."""
        return "".join(path.read_bytes().decode("utf-8", "replace") for path in self._parts())

    def replace(self, text: str) -> None:
        """Puts other lines in place of all. A kill leaves the old file or the new one; in a bucket,
        where the new lines are the first of the old ones, these and some of the others."""
        if not is_in_bucket(self.path):
            write_whole(self.path, text.encode())
            return
        parts = _cut(text)
        for path in reversed(self._parts()[len(parts) :]):
            path.unlink()
        for number, part in enumerate(parts):
            path = self._part(number)
            if not path.exists() or path.read_bytes() != part:
                write_whole(path, part)
        self._number, self._last = len(parts) - 1, parts[-1]

    def append(self, lines: str) -> None:
        """Adds whole lines; they are in the file when this returns. All of them, or an OSError."""
        data = lines.encode()
        if not is_in_bucket(self.path):
            with open(self.path, "ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    while data:
                        data = data[file.write(data) :]
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(size)  # half a line would spoil the next one
                    raise
            return
        if self._last is None:
            parts = self._parts()
            self._number = max(0, len(parts) - 1)
            self._last = parts[-1].read_bytes() if parts else b""
        if len(self._last) > PART_BYTES:
            self._number, self._last = self._number + 1, b""
        write_whole(self._part(self._number), self._last + data)
        self._last += data

    def _part(self, number: int):
        stem, ext = os.path.splitext(self.path.name)
        return self.path.with_name(f"{stem}-{number:05d}{ext}") if number else self.path

    def _parts(self) -> list:
        if not is_in_bucket(self.path):
            return [self.path]
        stem, ext = (re.escape(text) for text in os.path.splitext(self.path.name))
        others = re.compile(rf"{stem}-\d{{5,}}{ext}")
        if not self.path.exists():
            return []
        found = [p for p in self.path.parent.iterdir() if others.fullmatch(p.name)]
        return [self.path, *sorted(found, key=lambda path: (len(path.name), path.name))]


def _cut(text: str) -> list[bytes]:
    """Into parts, at lines, as `append` would have made them; one at the least."""
    parts = [b""]
    for line in text.splitlines(keepends=True):
        if len(parts[-1]) > PART_BYTES:
            parts.append(b"")
        parts[-1] += line.encode()
    return parts
