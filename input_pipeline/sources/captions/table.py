"""Source: a table of captions whose images are files, or were downloaded into tars by URL."""

import bisect
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from input_pipeline.files import ranges, tables
from input_pipeline.files.cache import Cache
from input_pipeline.files.listing import check_images, contents_digest
from input_pipeline.records import attempt, given
from input_pipeline.sources import check_fields
from input_pipeline.sources.shared import base
from input_pipeline.tars.reader import TarReader, url_hash
from input_pipeline.text import captions as texts


class Source(base.Source):
    """Rows of CSV, TSV, parquet or Arrow IPC files that have a caption and an image.

    With `image_column` a row names its image's file. With `url_column` rows are joined to tars that
    img2dataset downloaded: a row whose URL is the `url` of a sample gives a record of the table's
    captions and that sample's image (the first such sample), other rows are left out. Ids are
    "<file stem>/<row>".

    Text is taken as it is written. A .tsv has no quoting; a .csv has CSV's, see `delimited`.

    Only the columns that are needed are loaded, once per process. An .arrow file is memory-mapped
    and costs no memory, so it is the form for tables of many gigabytes.

    Args:
      path: a file, or a pattern that matches several of the same columns; on a disk. Images and
        downloads may lie in a bucket.
      captions: columns of strings, or of lists of strings.
      image_column: column of file names.
      image_root: directory that these start from.
      url_column: column of the URLs that the images were downloaded from.
      downloads: directory of an index of the downloaded tars (`prepare index`).
      split_sentences: split captions at full stops and line ends, as COSMOS expects.

    Raises:
      FileNotFoundError: no such table, images are missing, or the index or its tars are.
      ValueError: a column is missing, twice there or holds something else, text is no UTF-8,
        quotes do not fit together, neither or both of `image_column` and `url_column`, a URL column
        without downloads, no URL was downloaded, or no row is left.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        captions: Sequence[str],
        image_column: str | None = None,
        image_root: str | os.PathLike = ".",
        url_column: str | None = None,
        downloads: str | os.PathLike | None = None,
        split_sentences: bool = False,
    ):
        if (image_column is None) == (url_column is None):
            raise ValueError("table: give either image_column or url_column, and not both.")
        if (url_column is None) != (downloads is None):
            raise ValueError(
                "table: url_column and downloads belong together: `downloads` is the directory of "
                "an index of the downloaded tars; make it with `python -m input_pipeline.prepare "
                "index --input 'DOWNLOADED/*.tar' --output DIR`."
            )
        self._captions, self._split = check_fields(captions), split_sentences
        self._image_column = image_column
        self._image_root = os.fspath(ranges.source_path(image_root))
        self._url_column = url_column
        self._files = tables.find(ranges.disk_path(path, "tables are read"))
        needed = self._captions if image_column is None else (*self._captions, image_column)
        for file in self._files:
            tables.check_columns(file, needed if url_column is None else (*needed, url_column))
        self._columns = tuple(dict.fromkeys(needed))
        self._loaded: list[pa.Table] | None = None
        loaded = self._tables()
        self._ends = list(itertools.accumulate(table.num_rows for table in loaded))
        if not self._ends[-1]:
            raise ValueError(f"{path} has no rows.")
        for file, table in zip(self._files, loaded):
            tables.check_text(file, table)
            tables.check_rows(file, image_column or url_column)
        usable = np.concatenate([tables.have_text(table, self._captions) for table in loaded])
        self._tars = None
        if image_column is not None:
            names = [name for table in loaded for name in tables.strings(table, image_column)]
            self._rows = np.flatnonzero(usable & np.array([bool(name) for name in names]))
            check_images(self._image_root, (names[row] for row in self._rows))
        else:
            self._tars = TarReader(downloads)
            tar_rows = _join(self._files, url_column, self._tars)
            self._rows = np.flatnonzero(usable & (tar_rows >= 0))
            self._tar_rows = tar_rows[self._rows]
        if not len(self._rows):
            raise ValueError(f"No row of {path} has both a caption in {captions} and an image.")

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          OSError: the image cannot be read any more.
        """
        return given(self.records([index])[0])

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Those of `indices`; images in a bucket are all asked for at once."""
        try:
            rows = [self._row(int(self._rows[index])) for index in indices]
        except (OSError, ValueError) as error:
            return [error] * len(indices)
        if self._tars is None:
            names = [values[self._image_column] for _, values in rows]
            images = ranges.read_files([os.path.join(self._image_root, name) for name in names])
        else:
            images = self._tars.images([int(self._tar_rows[index]) for index in indices])
        return [attempt(self._record, row, image) for row, image in zip(rows, images)]

    def _record(self, row: tuple[str, dict[str, Any]], image: bytes) -> dict[str, Any]:
        id_, values = row
        found = {name: _clean(values[name], self._split) for name in self._captions}
        return {"id": id_, "image": image, "captions": found}

    def __getstate__(self):
        return {**self.__dict__, "_loaded": None}  # every process loads, or maps, the files itself

    def identity(self) -> Iterable[str | bytes]:
        """The tables' contents, which are read as a whole, and the options; the images' sizes, or
        what `TarReader.digest` tells of the tars."""
        columns = f"{self._captions} {self._image_column} {self._url_column}"
        parts: list[str | bytes] = [f"table {columns} {self._split}"]
        for file in self._files:
            parts += [f" {file.stem} ", contents_digest(file)]
        if self._tars is None:
            parts.append(self.sizes())
        else:
            parts += [self._tars.digest(), self._tar_rows.astype("<i8").tobytes()]
        return parts

    def files(self) -> list[str | Path]:
        """What the images are read from."""
        if self._tars is not None:
            return self._tars.paths()
        names = [n for table in self._tables() for n in tables.strings(table, self._image_column)]
        return [os.path.join(self._image_root, names[row]) for row in self._rows]

    def keep_in(self, cache: Cache) -> None:
        """Copies the tars, if they are in a bucket."""
        if self._tars is not None:
            self._tars.cache = cache

    def _tables(self) -> list[pa.Table]:
        if self._loaded is None:
            self._loaded = tables.load_all(self._files, self._columns)
        return self._loaded

    def _row(self, row: int) -> tuple[str, dict[str, Any]]:
        number = bisect.bisect_right(self._ends, row)
        table = self._tables()[number]
        row -= self._ends[number] - table.num_rows
        values = {name: table[name][row].as_py() for name in self._columns}
        return f"{self._files[number].stem}/{row}", values


def _join(files: Sequence[Path], url_column: str, tars: TarReader) -> np.ndarray:
    """i64[rows]: the first sample of the tars that was downloaded from each row's URL, -1 if none.

    Raises:
      ValueError: no URL is in both.
    """
    downloaded = tars.url_hashes()
    order = np.argsort(downloaded, kind="stable")
    order = order[downloaded[order] != 0]
    if not len(order):
        raise ValueError(
            f"No sample of the tars indexed in {tars.path} has a `url` in its .json, by which a "
            "table is joined; img2dataset writes it."
        )
    ordered, first = downloaded[order], ""
    parts = []
    for file in files:
        table = tables.load(file, (url_column,))
        tables.check_text(file, table)
        urls = list(tables.strings(table, url_column))
        first = first or next(filter(None, urls), "")
        hashes = np.fromiter(map(url_hash, urls), np.uint64, len(urls))
        # The sort is stable: the leftmost of equal hashes is the first in the tars.
        place = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
        parts.append(np.where(ordered[place] == hashes, order[place], -1))
    rows = np.concatenate(parts)
    if (rows < 0).all():
        [sample] = tars.pairs([int(order[0])], ("url",), False)
        [example] = given(sample)[1]["url"]
        raise ValueError(
            f"None of the {len(rows):,} URLs in column {url_column!r} was downloaded: the table "
            f"has e.g. {first!r}, the {len(order):,} samples indexed in {tars.path} e.g. "
            f"{example!r}."
        )
    return rows


def _clean(value: str | list[str] | None, split: bool) -> list[str]:
    strings = value if isinstance(value, list) else [value]
    if split:
        return [sentence for text in strings if text for sentence in texts.split_sentences(text)]
    return [text.strip() for text in strings if text and text.strip()]
