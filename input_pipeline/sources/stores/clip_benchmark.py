"""Source: one data set in clip_benchmark's layout, as the tasks of DataComp are published.

PATH/
  classnames.txt                        a line for each class, in the order of the labels
  zeroshot_classification_templates.txt prompts, with {c} in the place of the class name
  SPLIT/nshards.txt                     the number of tars
  SPLIT/0.tar, 1.tar, ...               samples of an image and .cls, .npy or .txt
"""

import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.checks import unicode
from input_pipeline.files import listing, ranges
from input_pipeline.files.cache import Cache
from input_pipeline.records import attempt, given
from input_pipeline.sources.shared import base, lists
from input_pipeline.tars import samples

NPY = ("groups", "labels")
_THREADS = 8


class Source(base.Source):
    """The samples of one split, in the order of the tars.

    A record has what its sample has: `label` of .cls, the lines of .txt as the captions "txt". An
    array in .npy is read as `npy` says. The tars are listed at construction, whose headers are
    read once from end to end.

    Attributes:
      class_names, templates: of the two files; None where they are not there.

    Args:
      path: the directory of the data set, on a disk or in a bucket.
      split: its folder.
      npy: "groups" for facts about a record, such as its region: `groups` names them; "labels" for
        a number per class, above 0 where the image has it: `labels`.
      groups: names of the values in .npy, as they follow each other; they become the record's
        `groups`, whole numbers by name.

    Raises:
      FileNotFoundError: there is no such directory, or a tar is missing.
      ValueError: a tar is damaged, no sample has an image, or `npy` is something else.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str = "test",
        npy: str = "groups",
        groups: Sequence[str] = (),
    ):
        if npy not in NPY:
            raise ValueError(f"npy={npy!r}; choose one of {NPY}.")
        root = ranges.source_path(path)
        self._npy, self._groups, self._cache = npy, tuple(groups), None
        self._files = _tars(root, split)
        with ThreadPoolExecutor(_THREADS) as pool:
            listed = list(pool.map(lambda file: samples.index(file.path), self._files))
        self._samples = [
            (number, sample)
            for number, found in enumerate(listed)
            for sample in found
            if not samples.image_problem(sample)
        ]
        if not self._samples:
            raise ValueError(
                f"No sample of the {len(self._files)} tars in {root / split} is whole."
            )
        self.class_names, self.templates = lists.read(root)

    def __len__(self) -> int:
        return len(self._samples)

    def record(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          ValueError: a member cannot be understood, or the tar was cut.
          OSError: it cannot be read.
        """
        return given(self.records([index])[0])

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Those of `indices`; in a bucket all are asked for at once."""
        places = []
        for index in indices:
            number, sample = self._samples[index]
            names = [samples.image_extensions(sample)[0]]
            names += [name for name in ("cls", "npy", "txt") if name in sample.members]
            places.append({name: (self._files[number], *sample.members[name]) for name in names})
        contents = iter(ranges.read([at for some in places for at in some.values()], self._cache))
        read = [[next(contents) for _ in some] for some in places]
        return [
            attempt(self._record, index, list(some), *parts)
            for index, some, parts in zip(indices, places, read)
        ]

    def _record(self, index: int, names: Sequence[str], image: bytes, *others: bytes) -> dict:
        number, sample = self._samples[index]
        name = f"{self._files[number].path.stem}/{sample.key}"
        record = {"id": name, "image": image, "captions": {}}
        for kind, data in zip(names[1:], others):
            try:
                record |= self._understood(kind, data)
            except (EOFError, ValueError, zipfile.BadZipFile) as error:  # of an .npy cut short, too
                raise ValueError(f"Record {name!r}: the .{kind} cannot be read: {error}.") from None
        return record

    def _understood(self, kind: str, data: bytes) -> dict[str, Any]:
        if kind == "cls":
            return {"label": int(data)}
        if kind == "txt":
            lines = unicode.decode(data).splitlines()
            return {"captions": {"txt": [line.strip() for line in lines if line.strip()]}}
        values = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1)
        if self._npy == "labels":
            return {"labels": np.flatnonzero(values > 0).tolist()}
        if len(values) < len(self._groups):
            raise ValueError(f"it has {len(values)} values, fewer than {list(self._groups)}")
        return {"groups": {name: int(value) for name, value in zip(self._groups, values)}}

    def identity(self) -> Iterable[str | bytes]:
        """Names and sizes of the tars and what they hold, and the options."""
        yield f"clip_benchmark {self._npy} {self._groups} {self.class_names} {self.templates}"
        yield self.sizes()
        for number, sample in self._samples:
            yield f"{number} {sample.key} {sample.members}"

    def files(self) -> list[Path | epath.Path]:
        """The tars."""
        return [file.path for file in self._files]

    def keep_in(self, cache: Cache) -> None:
        """Copies the tars, if they are in a bucket."""
        self._cache = cache


def _tars(root: Path | epath.Path, split: str) -> list[ranges.File]:
    counted = root / split / "nshards.txt"
    try:
        count = int(given(ranges.read_files([counted])[0]))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{counted} does not exist: {root} is no data set in clip_benchmark's layout, or has "
            f"no split {split!r}. `python -m evaluators.datasets check` says what is there."
        ) from None
    except ValueError:
        raise ValueError(f"{counted} holds no number of tars.") from None
    paths = [root / split / f"{number}.tar" for number in range(count)]
    found = listing.statuses(paths)
    missing = [path for path, status in zip(paths, found) if status.size < 0]
    if missing or not paths:
        raise FileNotFoundError(
            f"{len(missing)} of the {count} tars that {counted} tells of are missing"
            f"{f', such as {missing[0]}' if missing else ''}. Download them again."
        )
    return [ranges.File(path, s.size, s.checksum) for path, s in zip(paths, found)]
