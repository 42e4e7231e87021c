"""A source cut into pieces, as the tasks of a job read it."""

from dataclasses import dataclass
from typing import Any

from input_pipeline.files import listing
from input_pipeline.sources.shared.base import Source


@dataclass(frozen=True)
class Piece:
    """Some consecutive records of a source.

    Attributes:
      name: for messages.
      stem: of the names of files that are made of it.
      indices: of the records.
      origin: identifies the records wherever they lie.
      modified: tells when the source's files were changed.
    """

    name: str
    stem: str
    indices: range
    origin: dict[str, Any]
    modified: str


def cut(name: str, source: Source, records: int, stem: str | None = None) -> list[Piece]:
    """Pieces of so many records, and of what is left.

    Args:
      name: of the source.
      stem: of the pieces' files; by default the source's name.

    Raises:
      ValueError: it has no records, or is a weighted mixture.
    """
    if source.weights is not None:
        raise ValueError("A weighted mixture has no order: give its sources one by one.")
    fingerprint, length = source.fingerprint(), len(source)
    if not length:
        raise ValueError(f"source {name} has no records.")
    modified = listing.fingerprint(listing.status(source.files()).tobytes())
    return [
        Piece(
            name=f"{name}, records {first} to {min(first + records, length) - 1}",
            stem=f"{stem or name}-{number:05d}",
            indices=range(first, min(first + records, length)),
            origin={
                "fingerprint": fingerprint,
                "first": first,
                "records": min(records, length - first),
            },
            modified=modified,
        )
        for number, first in enumerate(range(0, length, records))
    ]
