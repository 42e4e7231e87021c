"""Builds grounding data for CogVLM: captions and a detector's boxes -> records with phrases.

    python -m input_pipeline.grounding --input data/laion --boxes 'boxes/*.jsonl' --output data/a

Noun phrases of the captions get the boxes of what they name; those that are ambiguous get none, and
images without a phrase that has one are dropped. The shards train CogVLM's tasks rec, reg and
grounded as they are. docs/corpora.md says what a file of boxes looks like. A killed command
continues where it stopped when it is given again.
"""

import argparse
import functools
import json
import random
import time
from collections.abc import Iterator
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
from input_pipeline.prepare import description, shards
from input_pipeline.prepare.command import without_folder
from input_pipeline.prepare.filters import Rules, Tally
from input_pipeline.sources import kept_source, make_source
from input_pipeline.text import conversations
from input_pipeline.text.conversations import captions_of
from input_pipeline.workers import say

_IMAGES, _SEVERAL = "images", "images with two boxes or more"
_NOT_NAMED = "not in the files of boxes"
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
    status = command_line.run(_run, args)
    if status == 130:
        say(Console(), "Interrupted. Run the same command to continue.")
    return status


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
    fingerprint, length = source.fingerprint(), len(source)
    if source.weights is not None:
        raise ValueError("A weighted mixture has no order: give its sources one by one.")
    if not length:
        raise ValueError(f"source {name} has no records.")
    paths = []
    for pattern in args.boxes:
        found = listing.matches(pattern)
        if not found:
            raise FileNotFoundError(f"--boxes {pattern!r} matches no file.")
        paths += found
    started, console = time.monotonic(), Console()
    run = command_line.runner(args, args.output / ".beam")
    boxes = store.build(paths, args.annotations, args.output, run, console)
    modified = listing.fingerprint(listing.status(source.files()).tobytes())
    jobs = []
    for number, first in enumerate(range(0, length, args.records_per_shard)):
        count = min(args.records_per_shard, length - first)
        indices = range(first, first + count)
        origin = {"fingerprint": fingerprint, "boxes": boxes.fingerprint}
        jobs.append(
            shards.Job(
                name=f"{name}, records {first} to {first + count - 1}",
                file=f"grounded-{number:05d}{shards.SHARD_SUFFIX}",
                origin={**origin, "first": first, "records": count},
                modified=modified,
                size=count,
                read=functools.partial(_ground, name, json.dumps(given), indices, boxes, choices),
            )
        )
    given = {key: without_folder(value) for key, value in given.items()}
    arguments = ["--input", written_source(name, given), "--boxes", *(p.name for p in paths)]
    options = {
        "command": "grounding",
        "name": name,
        "arguments": given,
        "records_per_shard": args.records_per_shard,
        **vars(choices),
        "captions": choices.captions and list(choices.captions),
    }
    for key in ("captions", "phrases", "min_score", "several_share"):
        if (value := options[key]) is not None:
            text = ",".join(value) if isinstance(value, list) else str(value)
            arguments += [f"--{key.replace('_', '-')}", text]
    arguments += ["--records-per-shard", str(args.records_per_shard)]
    written = shards.write(jobs, args.output, options, Rules(), run, "records", console)
    if not any(shard["records"] for shard in written):
        raise ValueError(_nothing(written, boxes))
    contents = description.describe(written, arguments, "input_pipeline.grounding")
    write_json(args.output / records.DATASET_FILE, contents)
    store.remove(args.output)
    description.summary(console, contents, time.monotonic() - started)
    _print_examples(console, args.output)
    counts = contents["counts"]
    share = counts.get(_SEVERAL, 0) / counts[_IMAGES]
    say(console, f"{share:.1%} of the images have two boxes or more (CogVLM's: {_PUBLISHED}).")
    say(console, f"Wrote {args.output / records.DATASET_FILE}")


def _ground(
    name: str, arguments: str, indices: range, boxes: Store, choices: _Choices, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id, record) for some records of a source; `arguments` as JSON."""
    source, pipeline = kept_source(name, arguments), phrases.make_pipeline(choices.phrases)
    several = single = 0
    for index in indices:
        record = source[index]
        key = record["id"]
        tally.samples += 1
        detections = boxes.find(key)
        if detections is None:
            tally.drop(key, _NOT_NAMED)
            continue
        with records.naming(record):
            captions = captions_of(record, choices.captions)
            found = matching.ground(
                captions, detections, pipeline, tally.counts, choices.min_score
            )
        if not found:
            tally.drop(key, "no phrase with a box" if captions else "no caption")
            continue
        has_several = len({box for group in found.values() for box in group}) > 1
        wanted = choices.several_share * (several + single + 1)
        if not has_several and several < wanted:
            tally.drop(key, "one box, and too many such images")
            continue
        pairs = [(phrase, box) for phrase, group in found.items() for box in group]
        kept = len(tally.widths)
        yield (
            key,
            {
                **record,
                "captions": _chosen(record["captions"], choices.captions),
                "phrases": [phrase for phrase, _ in pairs],
                "boxes": np.array([box for _, box in pairs], np.float32),
            },
        )
        # Whoever asks for the next one has looked at this one's image.
        if len(tally.widths) > kept:
            several, single = several + has_several, single + (not has_several)
            tally.counts.update({_IMAGES: 1, _SEVERAL: int(has_several)})
            tally.counts["boxes of phrases"] += len(pairs)


def _chosen(captions: dict[str, list[str]], fields: tuple[str, ...] | None) -> dict[str, list[str]]:
    return {name: texts for name, texts in captions.items() if fields is None or name in fields}


def _nothing(written: list[dict[str, Any]], boxes: Store) -> str:
    example = next(shard["first_dropped"] for shard in written if shard["dropped"])
    if description.dropped(written).keys() == {_NOT_NAMED}:
        return (
            "The files of boxes name no image of the source: its ids are such as "
            f"{example.removesuffix(f': {_NOT_NAMED}')}, theirs such as {boxes.example!r}."
        )
    return (
        f"No record is left: every sample was dropped ({description.dropped(written)}), e.g. "
        f"{example}."
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
