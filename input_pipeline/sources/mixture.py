"""Source: several sources as one, in proportion to their sizes or by weight."""

import bisect
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.checks.arguments import ArgumentError
from input_pipeline.files.cache import Cache
from input_pipeline.records import attempt
from input_pipeline.sources import make_source
from input_pipeline.sources.shared import base


class Source(base.Source):
    """The records of all components, one after the other.

    Ids are "<component>:<id>", because data sets downloaded in the same way number their records
    in the same way. `class_names` and `label_rule` are there if all components have the same.

    With weights the training loader runs through each component in an order of its own, again and
    again. Without them all records are shuffled together, so shares follow the sizes.

    Args:
      sources: one dict each: `name`, the arguments of that source, and optionally `fraction` and
        `weight`.

    Raises:
      ValueError: no sources, an entry without a name, some but not all weighted, or a weight that
        is not above 0; and what the sources raise, with the entry's number in front.
    """

    def __init__(self, sources: Sequence[Mapping[str, Any]]):
        if not sources:
            raise ValueError("A mixture needs at least one source; `sources` is empty.")
        entries = [dict(entry) for entry in sources]
        self.weights = _check_weights([entry.pop("weight", None) for entry in entries])
        components = [_make(number, entry) for number, entry in enumerate(entries)]
        self.lengths = [len(component) for component in components]
        self._components = components
        self._ends = list(itertools.accumulate(self.lengths))
        self.class_names = _common([component.class_names for component in components])
        self.label_rule = _common([component.label_rule for component in components])
        self.packed = [made for component in components for made in component.packed]
        self.left_out = sum((Counter(component.left_out) for component in components), Counter())

    def __len__(self) -> int:
        return self._ends[-1]

    def record(self, index: int) -> dict[str, Any]:
        number, place = self._find(index)
        return _renamed(self._components[number][place], number)

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Those of each component at once."""
        return self._of_each("records", indices)

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        return self._of_each("fields", indices)

    def _of_each(self, what: str, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        wanted: dict[int, list[tuple[int, int]]] = {}
        for row, index in enumerate(indices):
            number, place = self._find(index)
            wanted.setdefault(number, []).append((row, place))
        found: list[Any] = [None] * len(indices)
        for number, places in wanted.items():
            read = getattr(self._components[number], what)
            records = read([place for _, place in places])
            for (row, _), record in zip(places, records):
                found[row] = attempt(_renamed, record, number)
        return found

    def _find(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.lengths[number]

    def identity(self) -> Iterable[str]:
        parts = [component.fingerprint() for component in self._components]
        yield f"mixture {parts} {self.weights}"

    def files(self) -> list[str | os.PathLike]:
        """Those of the components."""
        return [file for part in self._components for file in part.files()]

    def keep_in(self, cache: Cache) -> None:
        for component in self._components:
            component.keep_in(cache)


def _renamed(record: dict[str, Any], number: int) -> dict[str, Any]:
    return {**record, "id": f"{number}:{record['id']}"}


def _make(number: int, arguments: dict[str, Any]):
    if "name" not in arguments:
        raise ValueError(f"Source {number} of the mixture has no `name`: {arguments}.")
    try:
        source = make_source(**arguments)
    except (OSError, ArgumentError, ValueError) as error:
        kinds = (FileNotFoundError, OSError, ArgumentError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"Source {number} of the mixture: {error}") from error
    if source.weights is not None:
        raise ValueError(
            f"Source {number} of the mixture is a weighted mixture itself, whose weights would be "
            "lost: list its sources in this one."
        )
    if not len(source):
        raise ValueError(f"Source {number} of the mixture ({arguments}) is empty.")
    return source


def _common(values: list[Any]) -> Any:
    """What all are, or None."""
    return values[0] if all(value == values[0] for value in values) else None


def _check_weights(weights: list[float | None]) -> list[float] | None:
    missing = [number for number, weight in enumerate(weights) if weight is None]
    if len(missing) == len(weights):
        return None
    if missing:
        raise ValueError(
            f"Sources {missing} of the mixture have no weight, the others do: give all a weight, "
            "or none, to mix by size."
        )
    for number, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"Source {number} of the mixture: weight={weight!r} is no number.")
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"Source {number} of the mixture: weight={weight} must be above 0. Remove a source "
                "that shall not be used."
            )
    return weights
