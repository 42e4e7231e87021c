"""What a data source is: records by their number, and what else is known of them."""

import itertools
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.files.cache import Cache
from input_pipeline.files.listing import fingerprint, status
from input_pipeline.files.ranges import read_files
from input_pipeline.records import attempt, given, without_images

_WITH_IMAGES = 8  # records whose images are in memory together, where only fields are asked for


class Source:
    """The base of all sources; `source[i]` is a record, see `input_pipeline.sources`.

    A subclass writes `__len__`, `record` and `identity`, and `files` where it reads any. It can be
    pickled and opens what it reads on first use, because every loader worker gets a copy.

    Attributes:
      class_names: of the records' `label`, or their `labels`; None where nobody named them.
      templates: prompts with `{}` in the place of a class name that came with the data; else None.
      label_rule: what decided `labels` that were mined, see `LabelRule.description`; else None.
      packed: for each prepared part with packs, what these were made for, see `Views.options` of
        `views.cogvlm`.
      weights: None, or what the training loader mixes by: the share of each part of the source
        among the examples, in any unit.
      lengths: records of the parts that `weights` are of, one part after the other.
      left_out: how much of what the files hold are no records, by what it is; `prepare` says it.
    """

    class_names: Sequence[str] | None = None
    templates: Sequence[str] | None = None
    label_rule: Mapping[str, Any] | None = None
    packed: Sequence[Mapping[str, Any]] = ()
    weights: Sequence[float] | None = None
    lengths: Sequence[int] = ()
    left_out: Mapping[str, int] = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def record(self, index: int) -> dict[str, Any]:
        """The record of a number in [0, len).

        Raises:
          OSError, ValueError: it cannot be read, or is malformed.
        """
        raise NotImplementedError

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """`self[i]` of each; what cannot be read stands there as its exception. A source that has
        long ways to its data reads all at once."""
        return [attempt(self.__getitem__, index) for index in indices]

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """As `records`, without images; a source that knows them without its images reads none."""
        found: list[dict[str, Any] | Exception] = []
        for first in range(0, len(indices), _WITH_IMAGES):
            records = self.records(indices[first : first + _WITH_IMAGES])
            found += [attempt(without_images, record) for record in records]
        return found

    def identity(self) -> Iterable[str | bytes]:
        """All that decides the records, but for where they lie."""
        raise NotImplementedError

    def files(self) -> Sequence[str | os.PathLike]:
        """What the records are read from: `prepare` makes a shard anew where they were changed."""
        return ()

    def keep_in(self, cache: Cache) -> None:
        """Lets shards and tars that lie in a bucket be copied to a disk; other sources go on as
        they are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record at `index`, as `record`. Raises IndexError unless it is in [0, len)."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is out of range: there are {len(self)} records.")
        return self.record(index)

    def fingerprint(self) -> str:
        """16 hex digits of `identity`: a run goes on only with the same."""
        return fingerprint(*self.identity())

    def sizes(self) -> bytes:
        """Sizes of `files`, for an `identity` that does not read them."""
        return status(self.files())[:, 0].tobytes()


class OfFiles(Source):
    """A source whose records are made of whole files, an image and perhaps more; files in a bucket
    are all asked for at once. A subclass writes `paths` and `record_of` in place of `record`."""

    def paths(self, index: int) -> Sequence[str]:
        """The files of the record of a number."""
        raise NotImplementedError

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        """The record of a number, of the contents of its files.

        Raises:
          ValueError: it is malformed.
        """
        raise NotImplementedError

    def record(self, index: int) -> dict[str, Any]:
        return given(self.records([index])[0])

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        paths = [self.paths(index) for index in indices]
        contents = iter(read_files([path for some in paths for path in some]))
        return [
            attempt(self.record_of, index, *itertools.islice(contents, len(some)))
            for index, some in zip(indices, paths)
        ]

    def files(self) -> list[str]:
        """Of all records, the first of each, then the second."""
        found = [self.paths(index) for index in range(len(self))]
        return [paths[place] for place in range(len(found[0]) if found else 0) for paths in found]


class Wrapper(Source):
    """The records of another source, and what is known of them; a subclass changes some of it."""

    def __init__(self, source: Source):
        self._source = source
        self.class_names, self.templates = source.class_names, source.templates
        self.label_rule, self.packed = source.label_rule, source.packed
        self.weights, self.lengths = source.weights, source.lengths
        self.left_out = source.left_out

    def __len__(self) -> int:
        return len(self._source)

    def files(self) -> Sequence[str | os.PathLike]:
        """Those of the source."""
        return self._source.files()

    def keep_in(self, cache: Cache) -> None:
        self._source.keep_in(cache)
