"""A data source, cut into the shards that a command makes of it."""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

from input_pipeline.prepare.filters import Tally
from input_pipeline.prepare.shards import SHARD_SUFFIX, Job
from input_pipeline.sources.shared import pieces
from input_pipeline.sources.shared.base import Source

Read = Callable[[str, str, str, range, Tally], Iterable[tuple[str, dict[str, Any]]]]


def cut(
    name: str,
    arguments: dict[str, Any],
    source: Source,
    per_shard: int,
    read: Read,
    stem: str | None = None,
    origin: dict[str, Any] | None = None,
) -> list[Job]:
    """Jobs of so many records each, in the order of the source.

    Args:
      name, arguments: of the source.
      per_shard: records read for a shard.
      read: read(name, arguments as JSON, fingerprint, numbers of records, tally), see `shards.Job`
        and `sources.kept_source`.
      stem: of the shards' names; by default the source's name.
      origin: what else the records come from.

    Raises:
      ValueError: the source has no records.
    """
    return [
        Job(
            name=piece.name,
            file=f"{piece.stem}{SHARD_SUFFIX}",
            origin={**piece.origin, **(origin or {})},
            modified=piece.modified,
            size=len(piece.indices),
            read=functools.partial(
                read, name, json.dumps(arguments), piece.origin["fingerprint"], piece.indices
            ),
        )
        for piece in pieces.cut(name, source, per_shard, stem)
    ]


def about(source: Source) -> dict[str, Any]:
    """What dataset.json says of the records' classes, and of what the source leaves out."""
    names = source.class_names
    found = {} if names is None else {"class_names": list(names)}
    if source.label_rule is not None:
        found["label_vocabulary"] = source.label_rule
    if source.left_out:
        found["left_out"] = dict(source.left_out)
    return found
