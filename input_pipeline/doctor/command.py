"""Is this data set sound?

    python -m input_pipeline.doctor data/mine --output report.png

PATH is a directory of prepared shards, a directory of a tar index, or a pattern of tars in quotes.
Prints a table and what is wrong, writes histograms. The exit code is 0 for a sound data set, else
1; the last line says which.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import track
from rich.table import Table

from input_pipeline import command_line, records
from input_pipeline.checks import unicode
from input_pipeline.checks.paths import is_url
from input_pipeline.checks.ranges import whole
from input_pipeline.doctor.survey import (
    CONTEXT_LENGTH,
    Sample,
    Survey,
    examine,
    histograms,
    number,
)
from input_pipeline.files import listing
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import checksum, write_whole
from input_pipeline.sources import make_source
from input_pipeline.tars import samples as tar_samples
from input_pipeline.tars.reader import INDEX_FILE, TarReader
from input_pipeline.text.lengths import positions, propose_groups
from input_pipeline.workers import say

DEFAULT_RECORDS = 100_000
_SHOWN = 5  # examples of a problem
_PATTERN = set("*?[")

# What img2dataset writes beside the captions.
_NO_CAPTIONS = {"key", "url", "uid", "status", "error_message", "exif", "md5", "sha256", "sha512"}


@dataclass
class DataSet:
    """A data set as it is stored.

    Attributes:
      kind: what it is, in words.
      count: number of its samples.
      readable: number of those that can be looked at, spread evenly: all, or more than is wanted.
      read: index below `readable` -> `Sample`; thread-safe.
      mends: whether our readers turn a string into a list, and leave out blank captions.
      check_files: compares the files with their checksums: number of files -> problems; or None.
      problems: what opening it showed.
    """

    kind: str
    count: int
    readable: int
    read: Callable[[int], Sample]
    mends: bool
    check_files: Callable[[], tuple[int, list[str]]] | None = None
    problems: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = command_line.Parser(prog="python -m input_pipeline.doctor", description=__doc__)
    parser.add_argument(
        "path",
        metavar="PATH",
        help="prepared directory, tar index directory, or 'DIR/*.tar' in quotes",
    )
    parser.add_argument(
        "--output",
        type=command_line.path_argument,
        default="report.png",
        metavar="PNG",
        help="the histograms",
    )
    parser.add_argument(
        "--records",
        type=whole(1),
        metavar="N",
        help="look at N records, evenly spread, and at no checksum; by default at all checksums, "
        f"and at all records up to {DEFAULT_RECORDS:,}",
    )
    parser.add_renamed("--sample", "--records")
    parser.add_argument(
        "--captions",
        type=command_line.fields,
        metavar="FIELD,...",
        help="caption fields of tars; by default all that hold text, but for img2dataset's own",
    )
    parser.add_argument(
        "--texts-per-device",
        type=whole(1),
        default=256,
        metavar="N",
        help="texts of a micro-batch that a device encodes at once, for which method.text_groups "
        "are proposed (default 256)",
    )
    args = parser.parse_args(argv)
    unicode.escape_output()
    console = Console(highlight=False)
    try:
        problems = diagnose(
            args.path, args.records, args.captions, args.output, console, args.texts_per_device
        )
    except (OSError, ValueError) as error:
        say(console, f"WRONG {error}")
        problems = [str(error)]
    if problems:
        say(console, f"Not sound: {len(problems)} problem{'s' * (len(problems) > 1)}, see above.")
        return 1
    say(console, "Sound.")
    return 0


def diagnose(
    path: str,
    wanted: int | None,
    names: tuple[str, ...] | None,
    output: Path | epath.Path,
    console: Console,
    texts: int,
) -> list[str]:
    """Prints the report, writes the histograms, returns the problems.

    Args:
      path, wanted, names, output, texts: see the command line.

    Raises:
      FileNotFoundError, ValueError: there is no data set to look at.
    """
    limit = wanted or DEFAULT_RECORDS
    data = open_data_set(path, names, limit)
    chosen = range(data.readable)
    if data.readable > limit:
        chosen = np.linspace(0, data.readable - 1, limit).round().astype(int).tolist()
    survey = Survey()
    with ThreadPoolExecutor() as threads:
        findings = threads.map(lambda i: examine(data.read(i)), chosen)
        hidden = not console.is_terminal
        for finding in track(findings, "", len(chosen), console=console, disable=hidden):
            survey.add(finding)
    problems, notes = judge(survey, data.mends)
    checked = ""
    if data.check_files and wanted:
        checked = "not compared: --records is given"
    elif data.check_files:
        count, broken = data.check_files()
        checked = f"{count - len(broken):,} of {count:,} shards are as they were written"
        problems += broken
    absent = [name for name in names or () if data.mends and name not in survey.fields]
    if absent:
        available = ", ".join(survey.fields)
        problems.append(f"No sample has the caption fields {absent}. Available: {available}.")
    problems = data.problems + problems
    console.print(_table(data, survey, checked, texts))
    for text in notes:
        say(console, f"note  {text}")
    for text in problems:
        say(console, f"WRONG {text}")
    write_whole(output, histograms(survey))
    say(console, f"Wrote {output}")
    return problems


def judge(survey: Survey, mends: bool) -> tuple[list[str], list[str]]:
    """(what must be repaired, what is good to know), a sentence each; `mends`: see `DataSet`."""
    problems, notes = [], []
    if survey.unreadable:
        examples = _some(f"{id_} ({reason})" for id_, reason in survey.unreadable)
        problems.append(
            f"{len(survey.unreadable):,} images or texts are unreadable: {examples}. prepare drops "
            "such records."
        )
    if survey.one_string and mends:
        notes.append(
            f"Captions are one string in {_counts(survey.one_string)}: read as a list of one. "
            "COSMOS wants lists of sentences: prepare them with --split-sentences."
        )
    elif survey.one_string:
        problems.append(
            f"Captions are one string instead of a list in {_counts(survey.one_string)}: sampling "
            "would give single characters. Prepare the data again."
        )
    if survey.no_text:
        problems.append(f"Captions are neither text nor lists of text: {_counts(survey.no_text)}.")
    if not survey.words:
        notes.append("There are no captions at all.")
    elif survey.no_caption:
        problems.append(
            f"{len(survey.no_caption):,} records have no caption: {_some(survey.no_caption)}. "
            "prepare drops such records."
        )
    if survey.blank:
        (notes if mends else problems).append(f"{survey.blank:,} captions are empty.")
    if survey.copies:
        examples = _some(f"{id_} = {first}" for id_, first in survey.copies)
        notes.append(
            f"{len(survey.copies):,} images occur earlier, byte for byte: {examples}. "
            "prepare --drop-duplicates leaves them out."
        )
    if (share := survey.cut_share()) > 0.01:
        notes.append(f"{share:.1%} of the captions are cut at CLIP's {CONTEXT_LENGTH} tokens.")
    return problems, notes


def open_data_set(path: str, names: tuple[str, ...] | None, limit: int) -> DataSet:
    """Finds out what `path` is, and opens it.

    Args:
      names: caption fields of tars, None for all.
      limit: how many samples will be looked at, at the most.

    Raises:
      FileNotFoundError, ValueError: it is no data set, or one that cannot be opened; PathError: it
        is a URL that cannot be read.
    """
    if not (is_url(path) and set(path) & _PATTERN):
        directory = storage_path(path)
        if (directory / records.DATASET_FILE).is_file():
            return _open_prepared(directory)
        if (directory / INDEX_FILE).is_file():
            return _open_index(directory, names, limit)
    tars = listing.find(path)
    if not tars:
        raise ValueError(
            f"{path} is no data set: a directory with {records.DATASET_FILE} (of prepare) or "
            f"{INDEX_FILE} (of prepare index), or a pattern of tars in quotes, e.g. 'DIR/*.tar'. "
            "Where prepare was interrupted, run it again first."
        )
    return _open_tars(tars, names, limit, f"{len(tars):,} tars")


def _open_prepared(directory: Path | epath.Path) -> DataSet:
    source = make_source("prepared", path=os.fspath(directory))

    def read(index: int) -> Sample:
        try:
            record = source[index]
        except ValueError as error:
            return Sample(f"record {index}", (), {}, (), str(error))
        id_ = record.get("id", f"record {index}")
        images = tuple(records.images_of(record))
        captions = record.get("captions", {})
        if not isinstance(captions, dict):
            captions = {"captions": captions}
        if not (images or "images" in record) or not all(isinstance(i, bytes) for i in images):
            return Sample(id_, (), captions, tuple(record), "no image")
        return Sample(id_, images, captions, tuple(record))

    def check_files() -> tuple[int, list[str]]:
        shards = json.loads((directory / records.DATASET_FILE).read_bytes())["shards"]
        with ThreadPoolExecutor() as threads:
            files = (directory / shard["file"] for shard in shards)
            sums = threads.map(checksum, files)
            broken = [
                f"Shard {directory / shard['file']} was changed since it was written. Delete it, "
                "and run the same prepare command."
                for shard, found in zip(shards, sums)
                if found != shard["sha256"]
            ]
        return len(shards), broken

    size = len(source)
    return DataSet("prepared shards", size, size, read, mends=False, check_files=check_files)


def _open_index(directory: Path | epath.Path, names: tuple[str, ...] | None, limit: int) -> DataSet:
    tars = TarReader(directory).paths()
    return _open_tars(tars, names, limit, f"index of {len(tars):,} tars")


def _open_tars(
    tars: list[Path | epath.Path], names: tuple[str, ...] | None, limit: int, kind: str
) -> DataSet:
    # Every stride-th sample; what is not needed is thinned out, as all may be tens of millions.
    samples: list[tuple[Path | epath.Path, tar_samples.Sample]] = []
    count, stride = 0, 1
    problems = []
    for tar in tars:
        try:
            for sample in tar_samples.index(tar):
                if count % stride == 0:
                    samples.append((tar, sample))
                count += 1
        except (OSError, ValueError) as error:
            problems.append(str(error))
        while len(samples) > 2 * limit:
            samples, stride = samples[::2], 2 * stride
    if not samples:
        raise ValueError("No sample can be read: " + (_some(problems) or "the tars are empty."))

    def read(number: int) -> Sample:
        tar, sample = samples[number]
        with tar.open("rb") as file:
            return _read_sample(f"{tar.stem}/{sample.key}", file, sample, names)

    return DataSet(kind, count, len(samples), read, mends=True, problems=problems)


def _read_sample(
    id_: str, file: Any, sample: tar_samples.Sample, names: tuple[str, ...] | None
) -> Sample:
    error, values = "", {}
    try:
        values = tar_samples.read_fields(file, sample)
    except ValueError as reason:
        error = f"its captions cannot be read: {reason}"
    captions = {}
    for name, value in values.items():
        is_text = isinstance(value, str) or (isinstance(value, list) and value != [])
        if (name in names) if names else (is_text and name not in _NO_CAPTIONS):
            # As readers do, that leave nulls in lists out.
            strings = value if isinstance(value, list) else ()
            captions[name] = [item for item in strings if item is not None] if strings else value
    if problem := tar_samples.image_problem(sample):
        count = len(tar_samples.image_extensions(sample)) or "no"
        return Sample(id_, (), captions, tuple(values), f"{count} images: {problem[1]}")
    [image] = tar_samples.image_extensions(sample)
    return Sample(id_, (sample.read(file, image),), captions, tuple(values), error)


def _table(data: DataSet, survey: Survey, checked: str, texts: int) -> Table:
    table = Table(show_header=False)
    table.add_row("data set", data.kind)
    note = "" if survey.samples == data.count else f", {survey.samples:,} of them looked at"
    table.add_row("records", f"{data.count:,}{note}")
    table.add_row("unreadable", f"{len(survey.unreadable):,}")
    table.add_row("same image twice", f"{len(survey.copies):,}")
    table.add_row("image width", _spread(survey.widths, "px"))
    table.add_row("image height", _spread(survey.heights, "px"))
    table.add_row("width / height", _spread(survey.aspect_ratios(), ""))
    table.add_row("captions", f"{len(survey.words):,}")
    table.add_row("captions per record", _spread(survey.captions, ""))
    table.add_row("one string, no list", _counts(survey.one_string) or "0")
    table.add_row("empty captions", f"{survey.blank:,}")
    table.add_row("records without any", f"{len(survey.no_caption):,}")
    table.add_row("caption length", _spread(survey.words, "words"))
    table.add_row("", _spread(survey.tokens, "CLIP tokens"))
    table.add_row(f"cut at {CONTEXT_LENGTH} tokens", f"{survey.cut_share():.1%}")
    if survey.tokens:
        groups = propose_groups(np.array(survey.tokens), CONTEXT_LENGTH, texts)
        share = positions(groups, CONTEXT_LENGTH) / CONTEXT_LENGTH
        table.add_row("method.text_groups", f"{groups}: {share:.0%} of {CONTEXT_LENGTH} tokens")
    table.add_row("fields", _counts(survey.fields))
    if checked:
        table.add_row("checksums", checked)
    return table


def _spread(values: Any, unit: str) -> str:
    if not len(values):
        return "none"
    low, median, high = map(number, np.percentile(values, [0, 50, 100]))
    return f"{low} to {high}, median {median} {unit}".rstrip()


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _some(items: Any) -> str:
    items = list(items)
    more = f", and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
