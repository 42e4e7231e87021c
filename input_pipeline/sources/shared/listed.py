"""Sources of image files and of what a published annotation file says of each.

One module reads several formats: a `Kind` is one of them.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.checks.arguments import unknown
from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.listing import check_images, names_in
from input_pipeline.sources.shared import base

Names = str | tuple[str, ...]  # of a record's image, or images

_SHOWN = 3
_VG_FOLDERS = ("VG_100K", "VG_100K_2")


class Kind(NamedTuple):
    """One published format.

    Attributes:
      read: makes the records' fields of the arguments of its source.
      form: what its file holds, in words, for messages.
      needs: arguments of the source that must be given.
      takes: those that may be given.
    """

    read: Callable[..., Any]
    form: str
    needs: Sequence[str] = ()
    takes: Sequence[str] = ()


def choose(kinds: Mapping[str, Kind], name: str, given: Mapping[str, Any]) -> Kind:
    """The kind of a name.

    Raises:
      ValueError: there is none, or it needs another argument or takes none of those.
    """
    if name not in kinds:
        raise ValueError(unknown("kind", name, kinds))
    kind = kinds[name]
    for argument, value in given.items():
        if value is None and argument in kind.needs:
            raise ValueError(f"kind={name!r} needs {argument} as well: {kind.form}.")
        if value is not None and argument not in (*kind.needs, *kind.takes):
            raise ValueError(f"kind={name!r} takes no {argument}: {kind.form}.")
    return kind


class Fields:
    """The fields of many records, "id" among them.

    They lie in memory as JSON, a line for each: half a million dicts would take gigabytes, and long
    to copy into every loader worker.

    Raises:
      ValueError: there is none, two have the same id, or some have `answers` and some do not.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]]):
        lines, seen, without = [], set(), []
        for fields in entries:
            if fields["id"] in seen:
                raise ValueError(f"two entries have the id {fields['id']!r}")
            seen.add(fields["id"])
            if "answers" not in fields:
                without.append(fields["id"])
            lines.append(json.dumps(fields, separators=(",", ":")).encode())
        if not lines:
            raise ValueError("there is nothing in it for records")
        if without and len(without) < len(lines):
            raise ValueError(
                f"{len(without):,} of {len(lines):,} questions have no answer, such as "
                f"{', '.join(without[:_SHOWN])}"
            )
        self.lines, self._ends = b"".join(lines), np.cumsum([len(line) for line in lines])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = self._ends[index - 1] if index else 0
        return json.loads(self.lines[start : self._ends[index]])


class Listed(base.OfFiles):
    """A record for each entry of an annotation file.

    Args:
      kind: of the entries, for the fingerprint.
      folder: directory that the images' names start from.
      entries: the image's name, "" where there is none, or a tuple of names, which become the
        record's `images`; and the other fields of a record, "id" among them, of each.

    Raises:
      FileNotFoundError: images are missing.
      ValueError: there is no entry, or two have the same id.
    """

    def __init__(
        self, kind: str, folder: str | os.PathLike, entries: Iterable[tuple[Names, dict[str, Any]]]
    ):
        self._kind, self._folder = kind, os.fspath(folder)
        self._names: list[Names] = []
        self._fields = Fields(self._named(entries))
        check_images(self._folder, self._each())

    def _named(self, entries: Iterable[tuple[Names, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        known: dict[Names, Names] = {}
        for name, fields in entries:
            self._names.append(known.setdefault(name, name))  # one string for all that have it
            yield fields

    def _each(self) -> list[str]:
        names = (name for names in self._names for name in _several(names))
        return [name for name in dict.fromkeys(names) if name]

    def __len__(self) -> int:
        return len(self._names)

    def paths(self, index: int) -> Sequence[str]:
        """The images."""
        return [os.path.join(self._folder, name) for name in _several(self._names[index])]

    def files(self) -> list[str]:
        """The images, each once."""
        return [os.path.join(self._folder, name) for name in self._each()]

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        fields = self._fields[index]
        one = isinstance(self._names[index], str)
        images = {"image": contents[0]} if one else {"images": list(contents)}
        return {"id": fields["id"], **images, "captions": {}} | fields

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        """Of the file alone; a subclass that makes them of the image, too, reads it."""
        return [{"id": "", "captions": {}} | self._fields[index] for index in indices]

    def identity(self) -> Iterable[str | bytes]:
        """Names and fields, and the images' sizes."""
        names = "\n".join("\t".join(_several(names)) for names in self._names)
        return self._kind, names, self._fields.lines, self.sizes()


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


@contextlib.contextmanager
def understood(path: str | os.PathLike, form: str) -> Iterator[None]:
    """Within it what is wrong with the contents of a file is one ValueError that names the file and
    says what it should hold."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = annotation_files.reason(error).rstrip(".")
        raise ValueError(f"{path} cannot be used ({reason}): it should hold {form}.") from None


def read_json(path) -> Any:
    """The contents of a JSON file that goes with another; errors name it.

    Raises:
      FileNotFoundError: it does not exist.
      ValueError: it is no JSON.
    """
    try:
        return annotation_files.read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def text(value: Any, what: str) -> str:
    """A text without blanks around it.

    Raises:
      ValueError: it is none, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} {value!r} is no text")
    return value.strip()


def unique(entries: Iterable[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Key as text -> entry, in the order of the file.

    Raises:
      ValueError: two have the same.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if (name := annotation_files.identity(entry[key])) in found:
            raise ValueError(f"two entries have the {key} {name}")
        found[name] = entry
    return found


def in_visual_genome(folder) -> Callable[[str], str]:
    """Where Visual Genome's images lie below a folder: in it, or in VG_100K and VG_100K_2."""
    where = {name: sub for sub in _VG_FOLDERS for name in names_in(folder / sub)}
    return lambda name: os.path.join(where.get(name, ""), name)


def check_set(content: Mapping[str, Any], name: str) -> None:
    """Raises ValueError where a file of TextVQA's form says that it is another set's."""
    if (found := str(content.get("dataset_name", name)).lower()) != name:
        raise ValueError(f"its dataset_name is {found!r}, not {name!r}")


def only(**fields) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
