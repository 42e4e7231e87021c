"""Builds grounding data for CogVLM: captions and a detector's boxes -> records with phrases.

    python -m input_pipeline.grounding --input data/laion --boxes 'boxes/*.jsonl' --output data/a

Noun phrases of the captions get the boxes of what they name; those that are ambiguous get none, and
images without a phrase that has one are dropped. The shards train CogVLM's tasks rec, reg and
grounded as they are. docs/corpora.md says what a file of boxes looks like. A killed command
continues where it stopped when it is given again.
"""

import argparse
import functools
import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from input_pipeline import command_line, records
from input_pipeline.checks import unicode
from input_pipeline.checks.ranges import whole
from input_pipeline.command_line import Parser, open_source, path_argument, written_source
from input_pipeline.files import listing
from input_pipeline.files.whole import write_json
from input_pipeline.grounding import matching, phrases, store
from input_pipeline.grounding.store import Store
from input_pipeline.prepare import description, parts, shards
from input_pipeline.prepare.command import without_folder
from input_pipeline.prepare.filters import Rules, Tally
from input_pipeline.sources import kept_source, make_source
from input_pipeline.text import conversations
from input_pipeline.text.conversations import captions_of
from input_pipeline.workers import say

_IMAGES, _SEVERAL = "images", "images with two boxes or more"
_NOT_NAMED = "not in the files of boxes"
_AT_ONCE = 64  # records, and their boxes: a bucket takes long for each answer
_TASKS = ("grounded", "rec", "reg")
# CogVLM's paper: over 75 % of the images have at least two boxes.
_PUBLISHED = "over 75 %"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = Parser(prog="python -m input_pipeline.grounding", description=__doc__)
    parser.add_argument(
        "--input",
        required=True,
        metavar=command_line.SOURCE,
        help=f"images and captions: {command_line.SOURCE_HELP}",
    )
    parser.add_argument(
        "--boxes",
        required=True,
        action="append",
        metavar="FILES",
        help="a detector's boxes, .json or .jsonl: a file or a pattern in quotes; may be repeated",
    )
    parser.add_argument(
        "--annotations",
        type=path_argument,
        metavar="FILE",
        help="COCO file with the images' sizes and the names of categories, for boxes that are "
        "lists of COCO results",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="DIR",
        help="directory to write, made if missing",
    )
    parser.add_argument(
        "--captions",
        type=command_line.fields,
        metavar="FIELD,...",
        help="caption fields that records keep; by default all",
    )
    parser.add_argument(
        "--phrases",
        default=phrases.CHUNKER,
        metavar="NAME",
        help=f"what finds noun phrases: {phrases.PIPELINES}, such as spacy:en_core_web_sm",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=matching.MIN_SCORE,
        metavar="X",
        help="phrases get no box of a lower score; down to half of it, one may still show that a "
        "phrase is ambiguous",
    )
    parser.add_argument(
        "--several-share",
        type=float,
        default=0.0,
        metavar="X",
        help="leave out images with one box until this share of the images has two or more "
        f"(CogVLM: {_PUBLISHED.replace('%', '%%')})",
    )
    parser.add_argument(
        "--records-per-shard", type=whole(1), default=5000, metavar="N", help="read for a shard"
    )
    command_line.add_workers(parser)
    args = parser.parse_job(argv)
    return command_line.run_job(_run, args)


@dataclass(frozen=True)
class _Choices:
    """What decides the records beside source and boxes; see the command's help."""

    captions: tuple[str, ...] | None
    phrases: str
    min_score: float
    several_share: float

    def __post_init__(self):
        if not 0 <= self.several_share < 1:
            raise ValueError(f"--several-share is a share from 0 to below 1: {self.several_share}.")
        if not -np.inf < self.min_score < np.inf:
            raise ValueError(f"--min-score is a number, not {self.min_score}.")
        phrases.make_pipeline(self.phrases)  # raises if it cannot be had


def _run(args: argparse.Namespace) -> None:
    unicode.check(str(args.output), "--output")
    choices = _Choices(args.captions, args.phrases, args.min_score, args.several_share)
    name, given, source = open_source(args.input)
    if source.weights is not None:
        raise ValueError("A weighted mixture has no order: give its sources one by one.")
    if not len(source):
        raise ValueError(f"source {name} has no records.")
    paths = []
    for pattern in args.boxes:
        found = listing.matches(pattern)
        if not found:
            raise FileNotFoundError(f"--boxes {pattern!r} matches no file.")
        paths += found
    places = {key: without_folder(value) for key, value in given.items()}
    options = {
        "command": "grounding",
        "name": name,
        "arguments": places,
        "records_per_shard": args.records_per_shard,
        **vars(choices),
        "versions": phrases.versions(choices.phrases),
        "captions": choices.captions and list(choices.captions),
    }
    shards.check_options(args.output, options)
    started, console = time.monotonic(), Console()
    annotations = [] if args.annotations is None else [args.annotations]
    reads = [*paths, *annotations, *command_line.places(given)]
    run = command_line.runner(args, args.output / ".beam", reads)
    boxes = store.build(paths, args.annotations, args.output, run, console)
    read = functools.partial(_ground, boxes, choices)
    origin = {"boxes": boxes.fingerprint}
    jobs = parts.cut(name, given, source, args.records_per_shard, read, "grounded", origin)
    arguments = ["--input", written_source(name, places)]
    arguments += [word for path in paths for word in ("--boxes", path.name)]
    arguments += [word for path in annotations for word in ("--annotations", path.name)]
    for key in ("captions", "phrases", "min_score", "several_share"):
        if (value := options[key]) is not None:
            text = ",".join(value) if isinstance(value, list) else str(value)
            arguments += [f"--{key.replace('_', '-')}", text]
    arguments += ["--records-per-shard", str(args.records_per_shard)]
    written = shards.write(jobs, args.output, options, Rules(), run, "records", console)
    if not any(shard["records"] for shard in written):
        raise ValueError(_nothing(written, boxes))
    contents = description.describe(written, arguments, "input_pipeline.grounding")
    contents |= parts.about(source)
    write_json(args.output / records.DATASET_FILE, contents)
    store.remove(args.output)
    description.summary(console, contents, time.monotonic() - started)
    _print_examples(console, args.output)
    counts = contents["counts"]
    share = counts.get(_SEVERAL, 0) / counts[_IMAGES]
    say(console, f"{share:.1%} of the images have two boxes or more (CogVLM's: {_PUBLISHED}).")
    say(console, f"Wrote {args.output / records.DATASET_FILE}")


def _ground(
    boxes: Store,
    choices: _Choices,
    name: str,
    arguments: str,
    fingerprint: str,
    indices: range,
    tally: Tally,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id, record) for some records of a source, see `kept_source`."""
    source = kept_source(name, arguments, fingerprint)
    grounded = _grounded(source, indices, boxes, choices, tally)
    if choices.several_share:
        # Counted first, without the records; those that are left are read again.
        kept = _with_share([(i, r["id"], found) for i, r, found in grounded], choices, tally)
        grounded = (
            (index, record, kept[index])
            for indices in _batches(list(kept))
            for index, record in zip(indices, map(records.given, source.records(indices)))
        )
    for _, record, found in grounded:
        pairs = [(phrase, box) for phrase, group in found.items() for box in group]
        before = len(tally.widths)
        yield (
            record["id"],
            {
                **record,
                "captions": _chosen(record["captions"], choices.captions),
                "phrases": [phrase for phrase, _ in pairs],
                "boxes": np.array([box for _, box in pairs], np.float32),
            },
        )
        # Whoever asks for the next one has looked at this one's image.
        if len(tally.widths) > before:
            tally.counts.update({_IMAGES: 1, _SEVERAL: int(_has_several(found))})
            tally.counts["boxes of phrases"] += len(pairs)


def _grounded(
    source, indices: range, boxes: Store, choices: _Choices, tally: Tally
) -> Iterator[tuple[int, dict[str, Any], matching.Grounded]]:
    """Yields (number, record, its phrases with boxes) of the records that have any."""
    pipeline = phrases.make_pipeline(choices.phrases)
    for some in _batches(indices):
        batch = [records.given(record) for record in source.records(some)]
        for index, record, own in zip(some, batch, boxes.find([r["id"] for r in batch])):
            key = record["id"]
            tally.samples += 1
            if own is None:
                tally.drop(key, _NOT_NAMED)
                continue
            tally.counts.update({f"boxes left out: {why}": n for why, n in own.broken.items()})
            with records.naming(record):
                captions = captions_of(record, choices.captions)
                found = matching.ground(
                    captions, own.boxes, pipeline, tally.counts, choices.min_score
                )
            if found:
                yield index, record, found
            else:
                tally.drop(key, "no phrase with a box" if captions else "no caption")


def _with_share(
    grounded: list[tuple[int, str, matching.Grounded]], choices: _Choices, tally: Tally
) -> dict[int, matching.Grounded]:
    """Number -> phrases of the images that stay: all with several boxes, and of the others as many
    as the share allows. Hashes of the ids choose, not the order."""
    single = [entry for entry in grounded if not _has_several(entry[2])]
    several = len(grounded) - len(single)
    allowed = math.floor(several * (1 - choices.several_share) / choices.several_share + 1e-9)
    single.sort(key=lambda entry: hashlib.blake2b(entry[1].encode()).digest())
    dropped = {index: id_ for index, id_, _ in single[allowed:]}
    for id_ in dropped.values():
        tally.drop(id_, "one box, and too many such images")
    return {index: found for index, _, found in grounded if index not in dropped}


def _has_several(found: matching.Grounded) -> bool:
    return len({box for group in found.values() for box in group}) > 1


def _batches(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(indices), _AT_ONCE):
        yield indices[first : first + _AT_ONCE]


def _chosen(captions: dict[str, list[str]], fields: tuple[str, ...] | None) -> dict[str, list[str]]:
    return {name: texts for name, texts in captions.items() if fields is None or name in fields}


def _nothing(written: list[dict[str, Any]], boxes: Store) -> str:
    example = next(shard["first_dropped"] for shard in written if shard["dropped"])
    if description.dropped(written).keys() == {_NOT_NAMED}:
        return (
            "The files of boxes name no image of the source: its ids are such as "
            f"{example.removesuffix(f': {_NOT_NAMED}')}, theirs such as {boxes.example!r}."
        )
    counts = sum((Counter(shard.get("counts", {})) for shard in written), Counter())
    return (
        f"No record is left: every sample was dropped ({description.dropped(written)}), e.g. "
        f"{example}; phrases and boxes: {dict(counts)}."
    )


def _print_examples(console: Console, output) -> None:
    """What the tasks make of the first record."""
    record = make_source("prepared", path=output)[0]
    table = Table("task", "prompt", "answer", title=f"Record {record['id']!r}")
    for task in _TASKS:
        turn = conversations.make_turn(task, record, random.Random(0))
        if turn is not None:
            table.add_row(task, turn.query, turn.answer)
    console.print(table, markup=False)
