"""Source: another source whose records are labelled by one of their text fields.

A category, such as "animals/birds", becomes the class of its first folder: `label` and
`class_names` for probes and fine-tuning on data that came as captions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.checks import arguments
from input_pipeline.records import attempt, given
from input_pipeline.sources import make_source
from input_pipeline.sources.shared import base

_READ_AT_ONCE = 64


class Source(base.Wrapper):
    """The records of a source, in its order, each with `label` from its caption field.

    The class is the text up to the first separator; classes are sorted by name. Constructing reads
    every record once.

    Args:
      data: `name` and arguments of the source.
      field: the caption field; its first text counts.
      separator: ends the class's name.
      classes_of: another source (`name` and arguments) whose classes count, with the same field: a
        held-out split takes those of its training split.

    Raises:
      ValueError: a record has no such field, or a class that `classes_of` does not have.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        field: str,
        separator: str = "/",
        classes_of: Mapping[str, Any] | None = None,
    ):
        self._field, self._separator = field, separator
        super().__init__(arguments.call("data", make_source, data))
        names = [self._class_of(record) for record in _records(self._source)]
        known = names
        if classes_of is not None:
            known_from = arguments.call("classes_of", make_source, classes_of)
            known = [self._class_of(record) for record in _records(known_from)]
        self.class_names = sorted(set(known))
        number = {name: i for i, name in enumerate(self.class_names)}
        unknown = sorted(set(names) - set(number))
        if unknown:
            raise ValueError(
                f"Field {field!r} names the classes {unknown}, which {dict(classes_of)} lacks; it "
                f"has {self.class_names}."
            )
        self._labels = [number[name] for name in names]

    def record(self, index: int) -> dict[str, Any]:
        return self._labelled(self._source[index], index)

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        found = self._source.records(indices)
        return [attempt(self._labelled, *one) for one in zip(found, indices)]

    def identity(self) -> Iterable[str]:
        yield f"{self._source.fingerprint()} {self._field} {self._separator} {self.class_names}"

    def _labelled(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        return {**record, "label": self._labels[index]}

    def _class_of(self, record: dict[str, Any]) -> str:
        texts = record["captions"].get(self._field)
        if not texts:
            raise ValueError(
                f"Record {record['id']!r} has no text in field {self._field!r}; it has "
                f"{list(record['captions'])}. Prepare the data with this field among --captions."
            )
        return texts[0].split(self._separator)[0].strip()


def _records(source: base.Source) -> Iterator[dict[str, Any]]:
    for first in range(0, len(source), _READ_AT_ONCE):
        yield from map(given, source.records(range(first, min(first + _READ_AT_ONCE, len(source)))))
