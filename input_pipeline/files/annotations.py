"""Annotation files in COCO's form: `images` with an id, `annotations` that refer to them by it.

An id is a whole number, however a tool wrote it (12, 12.0 and "12" are the same), or other text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from input_pipeline.checks import unicode
from input_pipeline.files.ranges import read_files
from input_pipeline.records import given

_NAMED = 3


def read(path: Path | epath.Path) -> Any:
    """The contents of a JSON file.

    Raises:
      FileNotFoundError: it does not exist.
      ValueError: it is no JSON, or its text is not valid Unicode.
    """
    try:
        data = given(read_files([path])[0])
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise FileNotFoundError(f"Annotation file {path} does not exist.") from None
    return unicode.parse_json(data)


def identity(value: Any) -> str:
    """An id as text.

    Raises:
      ValueError: it is neither a whole number nor text.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"the id {value!r} is neither a whole number nor text")
    return str(value)


def unique(entries: list[dict[str, Any]], what: str) -> dict[str, dict[str, Any]]:
    """id -> entry, in the order of the file.

    Raises:
      ValueError: an id occurs twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if (id_ := identity(entry["id"])) in found:
            raise ValueError(f"two {what} have the id {id_}: {found[id_]} and {entry}")
        found[id_] = entry
    return found


def by_image(
    annotations: list[dict[str, Any]], images: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id of its image, annotation), in the order of the file.

    Raises:
      ValueError: the images of some are not there.
    """
    ids = [identity(annotation["image_id"]) for annotation in annotations]
    missing = list(dict.fromkeys(id_ for id_ in ids if id_ not in images))
    if missing:
        raise ValueError(
            f"{sum(id_ not in images for id_ in ids):,} of {len(ids):,} annotations are of images "
            f"that are not listed, such as {', '.join(missing[:_NAMED])}"
        )
    return zip(ids, annotations)


def reason(error: Exception) -> str:
    """What is wrong with a file that could not be understood."""
    return str(error) if isinstance(error, ValueError) else repr(error)
