"""A data source, cut into the shards that a command makes of it."""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

from input_pipeline.files import listing
from input_pipeline.prepare.filters import Tally
from input_pipeline.prepare.shards import SHARD_SUFFIX, Job
from input_pipeline.sources.shared.base import Source

Read = Callable[[str, str, range, Tally], Iterable[tuple[str, dict[str, Any]]]]


def cut(
    name: str,
    arguments: dict[str, Any],
    source: Source,
    per_shard: int,
    stem: str,
    read: Read,
    origin: dict[str, Any] | None = None,
) -> list[Job]:
    """Jobs of so many records each, in the order of the source.

    Args:
      name, arguments: of the source.
      per_shard: records read for a shard.
      stem: of the shards' names.
      read: read(name, arguments as JSON, numbers of records, tally), see `shards.Job`.
      origin: what else the records come from.
    """
    fingerprint, length = source.fingerprint(), len(source)
    modified = listing.fingerprint(listing.status(source.files()).tobytes())
    jobs = []
    for number, first in enumerate(range(0, length, per_shard)):
        indices = range(first, min(first + per_shard, length))
        part = {"first": first, "records": len(indices)}
        jobs.append(
            Job(
                name=f"{name}, records {first} to {indices[-1]}",
                file=f"{stem}-{number:05d}{SHARD_SUFFIX}",
                origin={"fingerprint": fingerprint, **(origin or {}), **part},
                modified=modified,
                size=len(indices),
                read=functools.partial(read, name, json.dumps(arguments), indices),
            )
        )
    return jobs


def about(source: Source) -> dict[str, Any]:
    """What dataset.json says of the records' classes."""
    names = source.class_names
    found = {} if names is None else {"class_names": list(names)}
    if source.label_rule is not None:
        found["label_vocabulary"] = source.label_rule
    return found
