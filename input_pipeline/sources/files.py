"""Source: image files that a pattern finds, and nothing else."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from input_pipeline.checks import unicode
from input_pipeline.files.listing import IMAGE_EXTENSIONS, matches
from input_pipeline.sources.shared import base

_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


class Source(base.OfFiles):
    """One record per file, in the order of their paths, which are the ids. Files that are no images
    by their ending (see `listing.IMAGE_EXTENSIONS`) are passed over. Where paths are no UTF-8, ids
    have escapes.

    Args:
      path: a file, or a pattern with *, ?, [0-9] and **, on a disk or in a bucket.

    Raises:
      FileNotFoundError: there is no such image.
      PathError: a file in a bucket has a name with one of *?[]#.
    """

    def __init__(self, path: str | os.PathLike):
        found = map(os.fspath, matches(path))
        self._files = sorted(file for file in found if file.lower().endswith(_SUFFIXES))
        if not self._files:
            raise FileNotFoundError(
                f"{os.fspath(path)!r} finds no image (a pattern knows *, ?, [0-9] and **; images "
                f"end in {', '.join(_SUFFIXES)})."
            )

    def __len__(self) -> int:
        return len(self._files)

    def paths(self, index: int) -> Sequence[str]:
        return (self._files[index],)

    def record_of(self, index: int, image: bytes) -> dict[str, Any]:
        return {"id": unicode.escaped(self._files[index]), "image": image, "captions": {}}

    def identity(self) -> Iterable[str | bytes]:
        """All paths, and the images' sizes."""
        return "\n".join(["files", *self._files]), self.sizes()
