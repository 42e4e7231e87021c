"""One parquet file for each metadata table: in parallel, resumable, independent of both.

As in `prepare.shards`, a file is there as a whole or not at all, a small JSON beside it vouches for
it, and what is finished is kept while its table, the options and what else decided it are the same.
What is computed before, over all tables, and what is half-written lies in a hidden folder of the
output until all is done.
"""

import contextlib
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from etils import epath
from rich.console import Console

from input_pipeline.checks import unicode
from input_pipeline.files import listing, outages, tables, whole
from input_pipeline.files.buckets import is_in_bucket, make_directory
from input_pipeline.workers import Run, say

REPORT, PLOT, DROPPED = "report.json", "report.png", "dropped.tsv"
FORMAT_VERSION = 1
_KEPT = ("file", "rows", "kept", "bytes", "sha256", "source", "given")


@dataclass(frozen=True)
class Job:
    """A table that is read.

    Attributes:
      table: its path.
      file: name of the parquet that is written.
      origin: identifies the input wherever it lies.
      modified: tells when it was changed.
      size: share of the work, MB.
    """

    table: Path | epath.Path
    file: str
    origin: dict[str, Any]
    modified: str
    size: float

    def work_file(self, output: Path | epath.Path, *decides: Any) -> Path | epath.Path:
        """A hidden file for what is computed of the table and of `decides`."""
        return work_file(output, self.file, self.origin, self.modified, *decides)


def plan(pattern: str) -> list[Job]:
    """The tables that a pattern means, in the order of their names.

    Raises:
      ValueError: as `tables.find`, or a name is not valid Unicode; FileNotFoundError: none is.
    """
    found = tables.find(pattern)
    jobs = []
    for table, (size, modified) in zip(found, listing.status(found).tolist()):
        unicode.check(table.name, "What is kept of a table is named after it: rename this one")
        origin = {"file": table.name, "bytes": size}
        jobs.append(Job(table, f"{table.stem}.parquet", origin, str(modified), size / 1e6))
    return jobs


def finished(
    jobs: Sequence[Job],
    output: Path | epath.Path,
    options: dict[str, Any],
    given: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], bool]:
    """What earlier runs finished of these tables as they are: file -> what is kept of its JSON; and
    whether that is all, reported. Makes the output.

    Args:
      options: with others it is an error.
      given: what else is known of `given`, see `write`; with others a file is made again.

    Raises:
      ValueError: the output holds other files, or what was made with other options.
    """
    origins = {job.file: (job.origin, job.modified) for job in jobs}
    found = {}
    inputs = {_place(job.table): job.table for job in jobs}
    for job in jobs:
        if table := inputs.get(_place(output / job.file)):
            raise ValueError(f"{table} would be overwritten: use another --output.")
    for path, file, info in whole.finished(output, REPORT):
        if path.name in (PLOT, DROPPED):
            continue
        if file not in origins:
            raise ValueError(
                f"{path} was not made of these tables: use an empty --output, or remove it."
            )
        if info is None:
            continue
        if info["version"] != FORMAT_VERSION or info["options"] != options:
            raise ValueError(
                f"{output} holds files made with other options ({info['options']}, now {options}): "
                "use another --output, or empty it."
            )
        is_same = all(info["given"].get(name) == value for name, value in given.items())
        if is_same and (info["source"], info["modified"]) == origins[file]:
            found[file] = _counted(info)
    sizes_ = listing.status(output / file for file in found)[:, 0].tolist()
    found = {f: info for (f, info), size in zip(found.items(), sizes_) if size == info["bytes"]}
    return found, len(found) == len(jobs) and (output / REPORT).exists()


def _counted(info: dict[str, Any]) -> dict[str, Any]:
    """Of a JSON what is kept in memory, where there may be many: no samples, no options."""
    kept = {name: info[name] for name in _KEPT}
    rules = [{**rule, "rule": sys.intern(rule["rule"])} for rule in info["rules"]]
    for rule in rules:
        del rule["samples"]
    return {**kept, "rules": rules}


def _place(path: Path | epath.Path) -> str:
    """Of a file, by whatever path it is given; in buckets there are no links."""
    return os.fspath(path if is_in_bucket(path) else path.resolve())


def write(
    function: Callable[..., dict[str, Any] | str],
    tasks: Sequence[tuple[Job, dict[str, Any], tuple]],
    output: Path | epath.Path,
    found: dict[str, dict[str, Any]],
    run: Run,
    console: Console,
) -> list[dict[str, Any]]:
    """Writes the files that are not there yet; returns what is kept of each one's JSON, in order.

    Args:
      function: `function(job, output, about, *arguments)` writes a file; returns what `place` does,
        or the reason of its failure.
      tasks: (job, about, arguments), in order. `about` is all that decides a file beside its table:
        `options`, and `given` by the other tables; recorded, and compared.
      found: what earlier runs finished.

    Raises:
      ValueError: tasks failed (they were reported on the console), or a worker was killed.
    """
    found = {
        job.file: found[job.file]
        for job, about, _ in tasks
        if job.file in found and found[job.file]["given"] == about["given"]
    }
    if found:
        say(console, f"{len(found)} of {len(tasks)} files are finished already.")
    left = [
        (job, (job, output, about, *more)) for job, about, more in tasks if job.file not in found
    ]
    if left:  # it would describe files that are about to change
        (output / REPORT).unlink(missing_ok=True)
    failures = 0
    for count, (_, result) in enumerate(run(function, left, "MB", console), 1):
        if isinstance(result, str):
            failures += 1
            text = f"FAILED {result}"
        else:
            found[result["file"]] = result
            text = f"{result['file']}: {result['kept']:,} of {result['rows']:,} rows kept"
        say(console, f"[{count}/{len(left)}] {text}")
    _check(failures, len(tasks), "Mend or remove their tables, then run the same command.")
    return [found[job.file] for job, _, _ in tasks]


def compute(
    function: Callable[..., str],
    tasks: Iterable[tuple[Any, Path | epath.Path, tuple]],
    run: Run,
    console: Console,
    what: str,
) -> None:
    """Makes hidden files, where they are not there yet.

    Args:
      function: `function(path, *arguments)` writes a whole file; returns "", or the reason of its
        failure.
      tasks: (label, path, arguments).
      what: is being done, for the console.

    Raises:
      ValueError: tasks failed, or a worker was killed.
    """
    tasks = list(tasks)
    for folder in {path.parent for _, path, _ in tasks}:
        make_directory(folder)
    there = {p for folder in {t[1].parent for t in tasks} for p in whole.in_directory(folder)}
    left = [(label, (path, *more)) for label, path, more in tasks if path not in there]
    if not left:
        return
    say(console, f"{what} ({len(left)} of {len(tasks)} to do)")
    failures = 0
    for _, reason in run(function, left, "MB", console):
        if reason:
            failures += 1
            say(console, f"FAILED {reason}")
    _check(
        failures, len(tasks), "All must be read before any can be filtered: mend or remove them."
    )


def work_file(output: Path | epath.Path, name: str, *decides: Any) -> Path | epath.Path:
    key = listing.fingerprint(json.dumps(decides, sort_keys=True))
    return work_folder(output) / f"{name}.{key}"


def work_folder(output: Path | epath.Path) -> Path | epath.Path:
    """The hidden folder of an output, for what is needed until all is done."""
    return output / ".work"


def sizes(paths: Sequence[Path | epath.Path]) -> list[int]:
    """Of hidden files, in bytes.

    Raises:
      ValueError: one is not there.
    """
    found = listing.status(paths)[:, 0].tolist()
    if -1 in found:
        raise ValueError(
            f"{paths[found.index(-1)]} is gone: another command with this --output has ended. Give "
            "the same command again, one at a time."
        )
    return found


def clear(output: Path | epath.Path) -> None:
    """Removes the hidden folder."""
    folder = work_folder(output)
    if not is_in_bucket(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in whole.in_directory(folder):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary(folder: Path | epath.Path, name: str) -> Iterator[Path]:
    """A local file, in the hidden folder or instead of one there; removed where it is left."""
    make_directory(folder)
    with whole.scratch(folder) as scratch:
        path = scratch / whole.temporary_name(name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def place(
    temporary: Path, output: Path | epath.Path, job: Job, about: dict, info: dict
) -> dict[str, Any]:
    """Puts a file and its JSON into the output; returns what `_counted` does."""
    info = {
        "version": FORMAT_VERSION,
        **about,
        "source": job.origin,
        "modified": job.modified,
        "file": job.file,
        "bytes": temporary.stat().st_size,
        "sha256": whole.checksum(temporary),
        **info,
    }
    path = output / job.file
    whole.vouched(path, functools.partial(whole.place, temporary, path), info)
    return _counted(info)


def attempt(name: str | Path, function: Callable[..., Any], *arguments: Any) -> Any | str:
    """What a task gives: the function's result, or one line on what is wrong with a file; outages
    of a bucket are outlasted."""
    try:
        return outages.outlasting(function)(*arguments)
    except (OSError, ValueError, pa.ArrowException) as error:
        return _reason(name, error)


def _reason(name: str | Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if str(name) in text else f"{name}: {text}"


def _check(failures: int, total: int, advice: str) -> None:
    if failures:
        raise ValueError(
            f"{failures} of {total} files failed (see above); what is finished is kept. {advice}"
        )
