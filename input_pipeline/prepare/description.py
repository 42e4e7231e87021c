"""dataset.json: what a prepared data set holds and how it was made; and the table that says so."""

from collections import Counter
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.table import Table

from input_pipeline import records


def describe(
    shards: list[dict[str, Any]], arguments: list[str], tool: str = "input_pipeline.prepare"
) -> dict[str, Any]:
    """Contents of dataset.json.

    Args:
      shards: of every shard what `shards.write` gives, in order; at least one has a record.
      arguments: of the command that makes the same data set from the same input.
      tool: the command.
    """
    num_records = sum(shard["records"] for shard in shards)
    statistics: dict[str, Any] = {"formats": _total(shard["images"]["formats"] for shard in shards)}
    num_images = sum(statistics["formats"].values())
    for side in ("width", "height"):
        ranges = [shard["images"][side] for shard in shards if shard["images"]["formats"]]
        statistics[side] = {
            "min": min((r["min"] for r in ranges), default=0),
            "max": max((r["max"] for r in ranges), default=0),
            "mean": round(sum(r["sum"] for r in ranges) / max(num_images, 1), 2),
        }
    description = {
        "version": records.FORMAT_VERSION,
        "made_by": {
            "tool": tool,
            "version": _version(),
            "arguments": arguments,
        },
        "fields": _fields(shard["fields"] for shard in shards),
        "num_records": num_records,
        "num_samples": sum(shard["samples"] for shard in shards),
        "dropped": dropped(shards),
        "captions": _total(shard["captions"] for shard in shards),
        "missing_captions": _total(shard["missing_captions"] for shard in shards),
        "images": statistics,
        "shards": [
            {key: shard[key] for key in ("file", "records", "bytes", "sha256", "source")}
            for shard in shards
        ],
    }
    for name in ("removed_captions", "resized", "labels", "counts"):
        if total := _total(shard.get(name, {}) for shard in shards):
            description[name] = total
    return description


def dropped(shards: list[dict[str, Any]]) -> dict[str, int]:
    """Reason -> number of samples that gave no record."""
    return _total(shard["dropped"] for shard in shards)


def summary(console: Console, description: dict[str, Any], seconds: float) -> None:
    """Prints a data set's description, and how long this run took."""
    table = Table(show_header=False)
    shards, statistics = description["shards"], description["images"]
    size = sum(shard["bytes"] for shard in shards)
    table.add_row("records", f"{description['num_records']:,}")
    table.add_row("samples read", f"{description['num_samples']:,}")
    for reason, count in description["dropped"].items():
        table.add_row(f"dropped: {reason}", f"{count:,}")
    for rule, count in description.get("removed_captions", {}).items():
        table.add_row(f"captions removed: {rule}", f"{count:,}")
    for field, count in description["captions"].items():
        missing = description["missing_captions"].get(field)
        note = f" (no such field in {missing:,} samples)" if missing else ""
        table.add_row(f"captions: {field}", f"{count:,}{note}")
    if labels := description.get("labels"):
        text = f"{labels['labels']:,}, {labels['records without']:,} records without"
        table.add_row("labels", text)
    for name, count in description.get("counts", {}).items():
        table.add_row(name, f"{count:,}")
    for name, count in statistics["formats"].items():
        table.add_row(f"images: {name}", f"{count:,}")
    for side in ("width", "height"):
        low, high, mean = (statistics[side][key] for key in ("min", "max", "mean"))
        table.add_row(f"image {side}", f"{low} to {high}, mean {mean} px")
    if resized := description.get("resized"):
        before, after = (resized[f"bytes_{when}"] / 1e6 for when in ("before", "after"))
        table.add_row("resized", f"{resized['images']:,}, {before:,.1f} -> {after:,.1f} MB")
    table.add_row("shards", f"{len(shards):,}, {size / 1e6:,.1f} MB")
    table.add_row("time", f"{seconds:.1f} s")
    console.print(table)


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _fields(shards: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Name -> type of the fields of any record; of captions, their names."""
    fields: dict[str, Any] = {}
    for shard in shards:
        for name, kind in shard.items():
            known = fields.setdefault(name, kind)
            if isinstance(kind, list):
                fields[name] = known + [caption for caption in kind if caption not in known]
    return fields


def _version() -> str:
    """Of the package; a checkout that is not installed has none."""
    try:
        return version("big_vlp")
    except PackageNotFoundError:
        return "unknown"
