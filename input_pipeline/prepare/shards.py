"""Writes the shards of a data set: in parallel, resumable, independent of both.

Every job becomes one ArrayRecord shard and a small JSON about it. A shard is complete or absent, so
a run can be killed at any time and started again: finished shards are kept. The output depends on
the jobs and the options alone, not on the number of workers or of attempts. A job may be done
several times, also at once and on several machines: each attempt writes to a file of its own, and
the first that is finished counts. Shards for a bucket are made on the worker's disk, one at a time,
and uploaded.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from rich.console import Console

from input_pipeline import records
from input_pipeline.files import listing, outages, whole
from input_pipeline.files.buckets import is_in_bucket, storage_path
from input_pipeline.files.ranges import source_path
from input_pipeline.files.whole import in_directory
from input_pipeline.prepare import filters
from input_pipeline.prepare.filters import Rules, Tally
from input_pipeline.prepare.packing import Packer
from input_pipeline.words.labelling import Labeller
from input_pipeline.workers import Run, say

# One record per chunk makes random access cheap; encoded images do not compress any further.
WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_SUFFIX = ".array_record"
_DIGESTS_SUFFIX = ".digests"
DROPPED_SUFFIX = ".drop"  # see `duplicates.dropped`
_THREADS = 32


@dataclass(frozen=True)
class Job:
    """One shard to be written.

    Attributes:
      name: of its input, for messages.
      file: name of the shard.
      origin: identifies the input wherever it lies; part of dataset.json.
      modified: tells when the input's files were changed: sizes and modification times, as make
        goes by. A shard of another origin, or of files changed since, is made again.
      size: share of the work, in the unit of `write`.
      read: `read(tally)` yields (key, record) pairs, see `filters.passing`; picklable.
    """

    name: str
    file: str
    origin: dict[str, Any]
    modified: str
    size: float
    read: Callable[[Tally], Iterable[tuple[str, dict[str, Any]]]]


def write(
    jobs: list[Job],
    output: Path | epath.Path,
    options: dict[str, Any],
    rules: Rules,
    run: Run,
    unit: str,
    console: Console,
    labeller: Labeller | None = None,
    check: Callable[[], None] = lambda: None,
    packer: Packer | None = None,
) -> list[dict[str, Any]]:
    """Writes all shards that are not there yet; returns what `description.describe` needs of every
    shard, in order.

    Args:
      jobs: in the order of the data set.
      output: directory of the shards.
      options: all that decides the contents of a shard beside its job, `rules`, `labeller` and
        `packer` included: recorded, and compared on the next run.
      run: calls a function for many tasks, see `command_line.runner`.
      unit: of the jobs' sizes, for the progress bar.
      labeller: adds labels to the records.
      check: of the input, before the first shard of this run is written; may raise ValueError.
      packer: puts several of the records that pass into one.

    Raises:
      ValueError: jobs failed (they were reported on the console), the directory holds something
        else, or a worker was killed; PathError: a shard cannot have its name in a bucket.
      KeyboardInterrupt: after the workers were ended.
    """
    run = functools.partial(run, unit=unit, console=console)
    for job in jobs if is_in_bucket(output) else ():
        storage_path(output / job.file)
    shards, changed = _finished_shards(output, jobs, options)
    description = output / records.DATASET_FILE
    later_copies: dict[str, np.ndarray] = {}
    if len(shards) < len(jobs):
        check()
    if len(shards) < len(jobs) or not description.exists():
        # It would describe shards that are about to change.
        description.unlink(missing_ok=True)
        if rules.drop_duplicates:
            later_copies = _find_duplicates(jobs, output, options, rules, run, console)
            # What is a duplicate depends on all jobs, and some may have changed.
            found = {file: _fingerprint(numbers) for file, numbers in later_copies.items()}
            shards = {f: s for f, s in shards.items() if s["duplicates"] == found[f]}
    if changed:
        say(console, f"{changed} shards are made again: their input has changed.")
    if shards:
        say(
            console,
            f"{len(shards)} of {len(jobs)} shards are finished already (their input and its files' "
            "sizes and modification times are as they were).",
        )
    failures = 0
    function = functools.partial(_write_shard, output, options, rules, labeller)
    left = [job for job in jobs if job.file not in shards]
    tasks = [(job, (job, later_copies.get(job.file), packer)) for job in left]
    for count, (_, result) in enumerate(run(function, tasks), 1):
        if isinstance(result, str):
            failures += 1
            text = f"FAILED {result}"
        else:
            shards[result["file"]] = result
            text = f"{result['file']}: {result['records']:,} records"
            if dropped := result["dropped"].total():
                text += f", {dropped:,} dropped, e.g. {result['first_dropped']}"
        say(console, f"[{count}/{len(tasks)}] {text}")
    if failures:
        raise ValueError(
            f"{failures} of {len(jobs)} shards failed (see above); {len(shards)} are finished and "
            "will be kept. The data set is complete, and can be opened, once the same command has "
            "run without failures."
        )
    if tasks:
        _check_are_there(shards, output, jobs, options)
    for path in in_directory(output):
        if path.name.startswith(".") and path.name.endswith((_DIGESTS_SUFFIX, DROPPED_SUFFIX)):
            path.unlink(missing_ok=True)
    whole.remove_temporaries(output)
    return [shards[job.file] for job in jobs]


def check_options(output: Path | epath.Path, options: dict[str, Any]) -> None:
    """Raises ValueError where a directory holds shards made with other options; for commands that
    have much to do before `write`."""
    for _, file, shard in whole.finished(output, records.DATASET_FILE):
        if file.endswith(SHARD_SUFFIX) and shard is not None:
            _check_options(output, shard, options)


def _check_options(
    output: Path | epath.Path, shard: dict[str, Any], options: dict[str, Any]
) -> None:
    if shard["version"] != records.FORMAT_VERSION or shard["options"] != options:
        raise ValueError(
            f"{output} holds shards made with other options ({shard['options']}, format "
            f"version {shard['version']}; now {options}, {records.FORMAT_VERSION}): use "
            "another --output, or empty it."
        )


def _finished_shards(
    output: Path | epath.Path, jobs: list[Job], options: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], int]:
    """What earlier runs finished: shard file -> its JSON; and the number of shards whose input has
    changed since. Removes what they left half-written.

    Raises:
      ValueError: `output` holds other files, or shards made with other options or from other input.
    """
    inputs = {job.file: (job.origin, job.modified) for job in jobs}
    described, strangers = {}, []
    for path, file, shard in whole.finished(output, records.DATASET_FILE):
        if path.name.startswith("vocabulary."):  # made of the data set
            continue
        if not file.endswith(SHARD_SUFFIX):
            raise ValueError(f"{path} does not belong to a data set: use an empty --output.")
        if file not in inputs:
            strangers.append(path)
        if shard is None:
            continue
        _check_options(output, shard, options)
        described[file] = _kept(shard)
    if strangers:
        raise ValueError(
            f"{strangers[0]} was made from input that is not there now (--input does not match its "
            "tar, or the source has fewer records): use another --output, or remove the file."
        )
    are_whole = _are_whole([output / file for file in described], described.values())
    described = {f: s for (f, s), is_whole in zip(described.items(), are_whole) if is_whole}
    kept = {f: s for f, s in described.items() if (s["source"], s.get("modified")) == inputs[f]}
    return kept, len(described) - len(kept)


def _check_are_there(
    shards: dict[str, dict[str, Any]],
    output: Path | epath.Path,
    jobs: list[Job],
    options: dict[str, Any],
) -> None:
    """Whether what would be described is what the next run would find. A worker may be at a task of
    a command that was killed, also long after the next one began, and put another shard, of the
    input as it was then, into the place of a new one.

    Raises:
      ValueError: it is not.
    """
    found, _ = _finished_shards(output, jobs, options)
    sums = {file: shard["sha256"] for file, shard in found.items()}
    other = [job.file for job in jobs if sums.get(job.file) != shards[job.file]["sha256"]]
    if other:
        raise ValueError(
            f"{len(other)} of {len(jobs)} shards were replaced meanwhile, e.g. {other[0]}: a job "
            "of an earlier command with this --output still runs. End it, then run the same "
            "command to continue."
        )


def _are_whole(paths: list[Path | epath.Path], shards: Iterable[dict[str, Any]]) -> list[bool]:
    """Whether each shard is as it was when its JSON, which comes after it, was written."""

    def is_whole(path, shard, status, noted):
        size, modified = status
        if size != shard["bytes"]:
            return False
        return bool(modified <= noted) or whole.checksum(path) == shard["sha256"]

    notes = listing.status(path.with_name(f"{path.name}.json") for path in paths)
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(is_whole, paths, shards, listing.status(paths), notes[:, 1]))


def _kept(info: dict[str, Any]) -> dict[str, Any]:
    """Of the JSON of a shard what is kept in memory, where there may be many: counts of the dropped
    samples, with one in words, and of the duplicates a fingerprint."""
    kept = {**info, "dropped": Counter(item["reason"] for item in info["dropped"])}
    kept["first_dropped"] = filters.reason_of(info["dropped"][0]) if info["dropped"] else ""
    if "duplicates" in info:
        kept["duplicates"] = _fingerprint(info["duplicates"])
    return kept


def _fingerprint(numbers: Sequence[int]) -> str:
    return listing.fingerprint(np.asarray(numbers, "<i8").tobytes())


def _write_shard(
    output: Path | epath.Path,
    options: dict[str, Any],
    rules: Rules,
    labeller: Labeller | None,
    job: Job,
    duplicates: np.ndarray | None,
    packer: Packer | None,
) -> dict[str, Any] | str:
    """Writes one shard and its JSON. Returns what `_kept` gives, or the reason of the failure."""
    try:
        return _kept(_written_shard(output, options, rules, labeller, job, duplicates, packer))
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the ArrayRecord writer's.
        return _reason(job, error)


@outages.outlasting
def _written_shard(
    output: Path | epath.Path,
    options: dict[str, Any],
    rules: Rules,
    labeller: Labeller | None,
    job: Job,
    duplicates: np.ndarray | None,
    packer: Packer | None,
) -> dict[str, Any]:
    """Writes one shard and its JSON; returns the JSON."""
    path = source_path(output) / job.file  # known to this process, too
    with whole.scratch(path.parent) as scratch:
        temporary = scratch / whole.temporary_name(job.file)
        try:
            info = _write_temporary(temporary, rules, labeller, job, duplicates, packer)
            info = {"version": records.FORMAT_VERSION, "options": options, **info}
            if not _is_there(path, info):  # by another attempt
                whole.vouched(path, functools.partial(whole.place, temporary, path), info)
            return info
        except FileNotFoundError as error:
            if error.filename != os.fspath(temporary):
                raise
            # Another command with this output has finished, and removed all that is half-written.
            return _written_shard(output, options, rules, labeller, job, duplicates, packer)
        finally:
            temporary.unlink(missing_ok=True)


def _write_temporary(
    path: Path,
    rules: Rules,
    labeller: Labeller | None,
    job: Job,
    duplicates: np.ndarray | None,
    packer: Packer | None,
) -> dict[str, Any]:
    """Writes a shard's records; returns what is to be said of them."""
    tally, labels = Tally(), Counter()
    later_copies = frozenset(() if duplicates is None else duplicates.tolist())
    passing = filters.passing(job.read(tally), rules, tally, later_copies)
    if labeller is not None:
        passing = labeller.label(passing, labels)
        tally.fields["labels"] = "list"
    packs: Counter[str] = Counter()
    if packer is not None:
        passing = packer.pack(passing, tally, packs)
    count = _write_records(path, passing)
    info = {
        "source": job.origin,
        "modified": job.modified,
        "file": job.file,
        "records": count,
        "bytes": path.stat().st_size,
        "sha256": whole.checksum(path),
        "fields": tally.fields if packer is None else packer.fields,
        "samples": tally.samples,
        "dropped": tally.dropped,
        "missing_captions": tally.missing_captions,
        "removed_captions": tally.removed_captions,
        "captions": tally.captions,
        "resized": tally.resized,
        "images": {
            "formats": dict(sorted(tally.formats.items())),
            "width": _range(tally.widths),
            "height": _range(tally.heights),
        },
    }
    if duplicates is not None:
        info["duplicates"] = duplicates.tolist()
    if labeller is not None:
        info["labels"] = dict(labels)
    if packer is not None:
        info["packs"] = dict(packs)
    if tally.counts:
        info["counts"] = dict(tally.counts)
    return info


def _is_there(path: Path | epath.Path, info: dict[str, Any]) -> bool:
    """Whether this very shard is finished."""
    try:
        found = json.loads(path.with_name(f"{path.name}.json").read_bytes())
        return found == json.loads(json.dumps(info)) and whole.checksum(path) == info["sha256"]
    except (FileNotFoundError, ValueError):
        return False


def _reason(job: Job, error: Exception) -> str:
    text = str(error)
    return text if job.name in text else f"{job.name}: {text}"


def _range(values: list[int]) -> dict[str, int]:
    return {"min": min(values, default=0), "max": max(values, default=0), "sum": sum(values)}


def _write_records(path: Path, examples: Iterable[dict[str, Any]]) -> int:
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    count = 0
    try:
        for example in examples:
            try:
                data = records.encode(example)
            except (TypeError, ValueError) as error:
                raise ValueError(f"record {example.get('id')!r}: {error}") from None
            writer.write(data)
            count += 1
    finally:
        writer.close()
    return count


def _find_duplicates(
    jobs: list[Job],
    output: Path | epath.Path,
    options: dict[str, Any],
    rules: Rules,
    run: Run,
    console: Console,
) -> dict[str, np.ndarray]:
    """Reads the whole input once: shard file -> numbers of its samples (as `filters.passing` counts
    them) whose image occurs earlier in the data set.

    A killed run continues here as well: digests are kept until the data set is complete.
    """
    paths = {}
    for job in jobs:
        key = hashlib.sha256(json.dumps([job.origin, job.modified, options]).encode()).hexdigest()[
            :16
        ]
        paths[job.file] = output / f".{job.file}.{key}{_DIGESTS_SUFFIX}"
    there = set(in_directory(output))
    tasks = [(job, (job, paths[job.file])) for job in jobs if paths[job.file] not in there]
    if tasks:
        say(console, f"Looking for duplicates: reading the images of {len(tasks)} shards.")
    failures = 0
    for _, reason in run(functools.partial(_write_digests, rules), tasks):
        if reason:
            failures += 1
            say(console, f"FAILED {reason}")
    if failures:
        raise ValueError(
            f"{failures} of {len(jobs)} shards failed (see above). Duplicates can be told once all "
            "input is readable: repair or remove it, then run the same command to continue."
        )
    with ThreadPoolExecutor(_THREADS) as threads:
        files = threads.map(lambda job: paths[job.file].read_bytes(), jobs)
        digests = [np.frombuffer(data, np.uint64).reshape(-1, 2) for data in files]
    ends = np.cumsum([len(part) for part in digests])
    stacked = np.concatenate(digests)
    order = np.lexsort(stacked.T)  # Stable: equal digests stay in the order of the input.
    ordered = stacked[order]
    copies = np.sort(order[1:][(ordered[1:] == ordered[:-1]).all(axis=1)])
    parts = np.split(copies, np.searchsorted(copies, ends[:-1]))
    starts = ends - [len(part) for part in digests]
    return {job.file: part - start for job, part, start in zip(jobs, parts, starts)}


def _write_digests(rules: Rules, job: Job, path: Path | epath.Path) -> str:
    """Writes 16 bytes per sample that has captions. Returns the reason of a failure, or ""."""
    try:
        _written_digests(rules, job, path)
        return ""
    except (OSError, ValueError) as error:
        return _reason(job, error)


@outages.outlasting
def _written_digests(rules: Rules, job: Job, path: Path | epath.Path) -> None:
    tally = Tally()
    samples = filters.with_captions(job.read(tally), rules, tally)
    digests = [_digest(*sample) for sample in samples]
    whole.write_whole(source_path(path), b"".join(digests))


def _digest(key: str, record: dict[str, Any]) -> bytes:
    """Of the images; of a record without one of its key, which is no other's."""
    data = b"".join(records.images_of(record)) or f"no image: {key}".encode()
    return hashlib.blake2b(data, digest_size=16).digest()
