"""What a data source is: records by their number, and what else is known of them."""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.files.listing import fingerprint, status


class Source:
    """The base of all sources; `source[i]` is a record, see `input_pipeline.sources`.

    A subclass writes `__len__`, `record` and `identity`, and `files` where it reads any. It can be
    pickled and opens what it reads on first use, because every loader worker gets a copy.

    Attributes:
      class_names: of the records' `label`, or their `labels`; None where nobody named them.
      label_rule: what decided `labels` that were mined, see `LabelRule.description`; else None.
      weights: None, or what the training loader mixes by: the share of each part of the source
        among the examples, in any unit.
      lengths: records of the parts that `weights` are of, one part after the other.
    """

    class_names: Sequence[str] | None = None
    label_rule: Mapping[str, Any] | None = None
    weights: Sequence[float] | None = None
    lengths: Sequence[int] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def record(self, index: int) -> dict[str, Any]:
        """The record of a number in [0, len).

        Raises:
          OSError, ValueError: it cannot be read, or is malformed.
        """
        raise NotImplementedError

    def identity(self) -> Iterable[str | bytes]:
        """All that decides the records, but for where they lie."""
        raise NotImplementedError

    def files(self) -> Sequence[str | os.PathLike]:
        """What the records are read from: `prepare` makes a shard anew where they were changed."""
        return ()

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


class Wrapper(Source):
    """The records of another source, and what is known of them; a subclass changes some of it."""

    def __init__(self, source: Source):
        self._source = source
        self.class_names, self.label_rule = source.class_names, source.label_rule
        self.weights, self.lengths = source.weights, source.lengths

    def __len__(self) -> int:
        return len(self._source)

    def files(self) -> Sequence[str | os.PathLike]:
        """Those of the source."""
        return self._source.files()
