"""Counts the synsets of a corpus: in parts, in any order, on one machine or many.

A part is a range of records of one source; what is found in parts adds up, so the number of parts
and of processes changes nothing.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from input_pipeline.command_line import open_source
from input_pipeline.files import outages
from input_pipeline.sources import check_fields, kept_source
from input_pipeline.words.mining import kept_miner

_RECORDS_PER_PART = 5000
_MOST_PARTS = 20_000  # of a larger corpus; what is found in each comes back to one machine
# What the vocabulary covers is measured on about so many records, evenly spread: it is known only
# once everything has been counted, and the label sets of all captions would be too many to keep.
_SAMPLED_RECORDS = 100_000


@dataclass(frozen=True)
class Part:
    """Records first..first+size-1 of a source.

    Attributes:
      name, arguments, fingerprint: of the source; the arguments as JSON.
      offset: place of the source's first record in the whole corpus.
      stride: every so manieth record of the corpus belongs to the sample.
      captions: fields that count; None for all.
      mode: of the label miner.
    """

    name: str
    arguments: str
    fingerprint: str
    first: int
    size: int
    offset: int
    stride: int
    captions: tuple[str, ...] | None
    mode: str


@dataclass(frozen=True)
class Job:
    """What is to be counted.

    Attributes:
      parts: in the order of the corpus.
      inputs: {source, records, fingerprint} of every source.
      captions: fields that count; None for all.
      mode: of the label miner.
    """

    parts: list[Part]
    inputs: list[dict[str, Any]]
    captions: tuple[str, ...] | None
    mode: str


@dataclass
class Totals:
    """What was found in some parts.

    Attributes:
      records: number of them.
      unlabelled_records, unlabelled_captions: those without any synset.
      captions, skipped: field that counts, or does not -> number of strings.
      labels: key of a synset -> number of its occurrences.
      sampled_records, sampled_captions: keys found in a record or caption of the sample, ascending,
        each once -> number of records or captions with just these.
    """

    records: int = 0
    unlabelled_records: int = 0
    unlabelled_captions: int = 0
    captions: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    sampled_records: Counter[tuple[str, ...]] = field(default_factory=Counter)
    sampled_captions: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def add(self, other: "Totals") -> None:
        for item in dataclasses.fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, item.name, mine + theirs)


def plan(inputs: list[str], captions: Iterable[str] | None, mode: str) -> Job:
    """Opens the sources and divides the work.

    Args:
      inputs: sources, see `command_line.SOURCE`.
      captions: fields that count; None for all.
      mode: of the label miner.

    Raises:
      ValueError: a source cannot be made, or an argument makes no sense.
      FileNotFoundError: files of a source are missing.
    """
    kept_miner(mode)  # raises if it cannot be had
    captions = None if captions is None else check_fields(captions)
    sources = []
    for text in inputs:
        name, arguments, source = open_source(text)
        if source.weights is not None:
            raise ValueError("A weighted mixture has no counts: give its sources one by one.")
        sources.append((name, arguments, len(source), source.fingerprint()))
    total = sum(length for *_, length, _ in sources)
    stride = max(1, -(-total // _SAMPLED_RECORDS))
    part_size = max(_RECORDS_PER_PART, -(-total // _MOST_PARTS))
    parts, offset = [], 0
    for name, arguments, length, fingerprint in sources:
        for first in range(0, length, part_size):
            size = min(part_size, length - first)
            encoded = json.dumps(arguments)
            parts.append(
                Part(name, encoded, fingerprint, first, size, offset, stride, captions, mode)
            )
        offset += length
    described = [
        {"source": name, "records": length, "fingerprint": fingerprint}
        for name, _, length, fingerprint in sources
    ]
    return Job(parts, described, captions, mode)


@outages.outlasting
def count(part: Part) -> Totals:
    """Reads the records of a part and mines their captions.

    Raises:
      ValueError: a record cannot be read.
    """
    source, miner = kept_source(part.name, part.arguments, part.fingerprint), kept_miner(part.mode)
    totals = Totals()
    labels: list[str] = []  # counted at the end: all at once is faster
    for index in range(part.first, part.first + part.size):
        totals.records += 1
        sampled = (part.offset + index) % part.stride == 0
        found: set[str] = set()
        for name, texts in source[index].get("captions", {}).items():
            if part.captions is not None and name not in part.captions:
                totals.skipped[name] += len(texts)
                continue
            totals.captions[name] += len(texts)
            for text in texts:
                keys = miner.keys(text)
                labels += keys
                totals.unlabelled_captions += not keys
                found.update(keys)
                if sampled:
                    totals.sampled_captions[tuple(sorted(set(keys)))] += 1
        totals.unlabelled_records += not found
        if sampled:
            totals.sampled_records[tuple(sorted(found))] += 1
    totals.labels.update(labels)
    return totals


def run(job: Job, run_all: Callable[..., Iterable[tuple[Part, Totals]]]) -> Totals:
    """Counts all parts in processes of this machine or of others; a single part, which is not worth
    them, in this process.

    Args:
      run_all: see `command_line.runner`.

    Raises:
      ValueError: a record cannot be read, or a worker was killed.
      KeyboardInterrupt: after the workers were ended.
    """
    if len(job.parts) == 1:
        return count(job.parts[0])
    totals = Totals()
    for _, found in run_all(count, [(part, (part,)) for part in job.parts], "records", Console()):
        totals.add(found)
    return totals
