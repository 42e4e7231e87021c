"""Indexes WebDataset tars, so that they can be read in any order without being converted.

Nothing is copied: `<stem>.npy` says where the members of a tar's samples lie, `<stem>.npy.json`
what else is known about the tar, and `index.json`, written last, describes all. A tar's files are
complete or absent, so a killed run continues where it stopped. `tars.reader` reads the result.
Tars and index may lie in a bucket; a tar there is read from end to end, twice.
"""

import contextlib
import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from input_pipeline.files import outages
from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.files.listing import Status, statuses
from input_pipeline.files.ranges import open_file, source_path
from input_pipeline.files.whole import (
    finished,
    remove_temporaries,
    vouched,
    write_json,
    write_whole,
)
from input_pipeline.tars import samples
from input_pipeline.tars.reader import FORMAT_VERSION, INDEX_FILE, row_dtype, url_hash
from input_pipeline.text.captions import split_sentences
from input_pipeline.workers import say

_SUFFIX = ".npy"


@dataclass(frozen=True)
class _Task:
    """A tar to be indexed; `size` in megabytes, for the progress bar."""

    tar: Path | epath.Path
    size: float


def build(pattern: str, output: Path | epath.Path, run: Callable[..., Any]) -> None:
    """Indexes the tars that are not indexed yet and prints what was found.

    Args:
      pattern: of the tars, see `listing.find`.
      output: directory of the index.
      run: calls a function for many tasks, see `command_line.runner`.

    Raises:
      ValueError: nothing matches, two tars of one name, damaged tars (reported on the console),
        other files in `output`, or no sample with an image.
      KeyboardInterrupt: after the workers were ended.
    """
    console, started = Console(), time.monotonic()
    tars = samples.find_tars(pattern)
    status = dict(zip(tars, statuses(tars)))  # before they are read
    entries = _finished_tars(output, status)
    if entries:
        say(
            console,
            f"{len(entries)} of {len(tars)} tars are indexed already (their sizes and modification "
            "times are as they were).",
        )
    pending = [tar for tar in tars if tar not in entries]
    if pending:
        (output / INDEX_FILE).unlink(missing_ok=True)  # It describes files that will change.
    tasks = [
        (_Task(tar, status[tar].size / 1e6), (tar, status[tar][:2], output)) for tar in pending
    ]
    failures = 0
    for task, result in run(_index_tar, tasks, "MB", console):
        if isinstance(result, str):
            failures += 1
            say(console, f"FAILED {result}")
        else:
            entries[task.tar] = result
    if failures:
        raise ValueError(
            f"{failures} of {len(tars)} tars failed (see above); {len(entries)} are indexed and "
            "will be kept. Repair, replace or remove the others, then run the same command."
        )
    ordered = [{"path": _stored_path(tar, output), **entries[tar]} for tar in tars]
    if not any(entry["samples"] for entry in ordered):
        [first, *_] = *(item for entry in ordered for item in entry["dropped"]), None
        why = f", e.g. key {first['key']!r}: {first['reason']}: {first['detail']}" if first else ""
        raise ValueError(f"No sample of the tars that match --input {pattern!r} can be used{why}.")
    write_json(output / INDEX_FILE, {"version": FORMAT_VERSION, "tars": ordered})
    remove_temporaries(output)
    _summary(console, ordered, time.monotonic() - started)
    say(console, f"Wrote {output / INDEX_FILE}")


def _finished_tars(output: Path, tars: dict[Path, Status]) -> dict[Path, dict[str, Any]]:
    """What earlier runs finished: tar -> its JSON. Removes what they left half-written.

    Raises:
      ValueError: `output` holds other files, or belongs to tars that --input does not match.
    """
    by_file = {tar.stem + _SUFFIX: tar for tar in tars}
    kept = {}
    for path, file, entry in finished(output, INDEX_FILE):
        if file not in by_file:
            raise ValueError(
                f"{path} does not belong to an index of the tars that --input matches: use another "
                "--output, or remove the file."
            )
        if entry is None:
            continue
        tar = by_file[file]
        identity = FORMAT_VERSION, *tars[tar][:2]
        if (entry["version"], entry["bytes"], entry.get("modified")) != identity:
            continue
        with contextlib.suppress(FileNotFoundError):
            if hashlib.sha256((output / file).read_bytes()).hexdigest() == entry["sha256"]:
                kept[tar] = entry
    return kept


def _index_tar(
    tar: Path | epath.Path, status: tuple[int, int], output: Path | epath.Path
) -> dict[str, Any] | str:
    """Writes the files of one tar of this size and modification time. Returns the JSON, or the
    reason of the failure."""
    try:
        return _indexed_tar(source_path(tar), status, source_path(output))
    except (OSError, ValueError) as error:
        text = str(error)
        return text if str(tar) in text else f"{tar}: {text}"


@outages.outlasting
def _indexed_tar(
    tar: Path | epath.Path, status: tuple[int, int], output: Path | epath.Path
) -> dict[str, Any]:
    table, texts, dropped, digest = _read_tar(tar)
    data = io.BytesIO()
    np.save(data, table, allow_pickle=False)
    file = output / (tar.stem + _SUFFIX)
    entry = {
        "version": FORMAT_VERSION,
        "file": file.name,
        "bytes": status[0],
        "modified": status[1],
        "samples": len(table),
        "sha256": hashlib.sha256(data.getvalue()).hexdigest(),
        "contents": digest,
        "texts": dict(zip(texts, table["texts"].sum(axis=0).tolist())),
        "dropped": dropped,
    }
    vouched(file, lambda: write_whole(file, data.getvalue()), entry)
    return entry


def _read_tar(
    tar: Path | epath.Path,
) -> tuple[np.ndarray, list[str], list[dict[str, str]], str]:
    """Rows of the samples that can be used, names of their text fields, what was dropped, and a
    checksum of the .json and .txt of the rows.

    Raises:
      ValueError: the tar is damaged, see `samples.index`.
    """
    usable, dropped, digest = [], [], hashlib.sha256()
    with open_file(tar) as file:
        for sample in samples.index(tar):
            problem = samples.image_problem(sample)
            if problem is None:
                try:
                    values = samples.read_fields(file, sample)
                except ValueError as error:
                    problem = "unreadable captions", str(error)
            if problem is not None:
                dropped.append({"key": sample.key, "reason": problem[0], "detail": problem[1]})
                continue
            url = values.get("url")
            texts = {name for name, value in values.items() if _has_text(value)}
            usable.append((sample, url_hash(url) if isinstance(url, str) else 0, texts))
            for extension in ("json", "txt"):
                if extension in sample.members:
                    digest.update(sample.read(file, extension))
    names = sorted(set().union(*(texts for *_, texts in usable)))
    key_bytes = max((len(sample.key.encode()) for sample, *_ in usable), default=1)
    table = np.zeros(len(usable), row_dtype(key_bytes, len(names)))
    for row, (sample, url, texts) in zip(table, usable):
        row["image"] = sample.members[samples.image_extensions(sample)[0]]
        row["json"] = sample.members.get("json", 0)
        row["txt"] = sample.members.get("txt", 0)
        row["url"] = url
        row["texts"] = [name in texts for name in names]
        row["key"] = sample.key.encode()
    return table, names, dropped, digest.hexdigest()


def _has_text(value: Any) -> bool:
    # What is nothing but full stops would be empty once it is split into sentences.
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and split_sentences(text) for text in texts)


def _stored_path(tar: Path | epath.Path, output: Path | epath.Path) -> str:
    """Relative to the index for tars beside or below it, so that both can be moved together."""
    if is_in_bucket(tar) or is_in_bucket(output):
        place = os.fspath(tar if is_in_bucket(tar) else tar.resolve())
        beside = f"{os.fspath(output.parent)}/"
        return f"../{place.removeprefix(beside)}" if place.startswith(beside) else place
    folder, output = tar.parent.resolve(), output.resolve()
    if folder.is_relative_to(output.parent):
        return os.path.relpath(folder / tar.name, output)
    return str(folder / tar.name)


def _summary(console: Console, entries: list[dict[str, Any]], seconds: float) -> None:
    samples = sum(entry["samples"] for entry in entries)
    texts, dropped = Counter(), Counter()
    for entry in entries:
        texts.update(entry["texts"])
        dropped.update(item["reason"] for item in entry["dropped"])
    table = Table(show_header=False)
    table.add_row("samples", f"{samples:,}")
    for reason, count in dropped.items():
        table.add_row(f"left out: {reason}", f"{count:,}")
    for field, count in sorted(texts.items()):
        table.add_row(f"text in {field}", f"{count:,}")
    table.add_row("tars", f"{len(entries):,}, {sum(e['bytes'] for e in entries) / 1e6:,.1f} MB")
    table.add_row("time", f"{seconds:.1f} s")
    console.print(table)
