"""Source: WebDataset tars, read where they are through an index (`prepare index`)."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.files.cache import Cache
from input_pipeline.records import attempt, given
from input_pipeline.sources import check_fields
from input_pipeline.sources.shared import base
from input_pipeline.tars.reader import TarReader


class Source(base.Source):
    """Random access to the samples of indexed tars, in the order of the tars.

    Samples without text in any of the caption fields are left out. Images were not looked at when
    the tars were indexed: `python -m input_pipeline.doctor` finds broken ones.

    Args:
      path: directory of the index; it and the tars may lie in a bucket.
      captions: JSON fields that hold a caption or a list of captions; "txt" is the .txt member.
      split_sentences: split captions at full stops and line ends, as COSMOS expects.

    Raises:
      FileNotFoundError: no index there, or a tar is missing.
      ValueError: the index is damaged, a tar has changed in size, or a caption field is unknown.
    """

    def __init__(
        self, path: str | os.PathLike, captions: Sequence[str], split_sentences: bool = False
    ):
        self._tars = TarReader(path)
        self._fields, self._split = check_fields(captions), split_sentences
        available = self._tars.text_fields()
        for field in self._fields:
            if field not in available:
                raise ValueError(
                    f"No sample of {path} has text in the field {field!r}. Available: "
                    f"{', '.join(available) or 'none'}."
                )
        self._rows = self._tars.rows_with_text(self._fields)

    def __len__(self) -> int:
        return len(self._tars) if self._rows is None else len(self._rows)

    def record(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          ValueError: a field holds something that is no caption, or the tar has changed.
        """
        return given(self.records([index])[0])

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Those of `indices`; in a bucket all are asked for at once."""
        rows = [index if self._rows is None else int(self._rows[index]) for index in indices]
        found = self._tars.pairs(rows, self._fields, self._split)
        return [attempt(self._record, row, sample) for row, sample in zip(rows, found)]

    def _record(self, row: int, sample: tuple[bytes, dict[str, list[str]]]) -> dict[str, Any]:
        image, captions = sample
        return {"id": self._tars.id(row), "image": image, "captions": captions}

    def identity(self) -> Iterable[str]:
        """What `TarReader.digest` tells, and the options."""
        yield f"webdataset {self._tars.digest().hex()} {self._fields} {self._split}"

    def files(self) -> list[Path]:
        """The tars."""
        return self._tars.paths()

    def keep_in(self, cache: Cache) -> None:
        """Copies the tars, if they are in a bucket."""
        self._tars.cache = cache
