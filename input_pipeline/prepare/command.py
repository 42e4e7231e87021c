"""Turns data into checked shards for training.

    python -m input_pipeline.prepare webdataset --input 'tars/*.tar' --captions txt --output data/a
    python -m input_pipeline.prepare source --input coco:annotations=FILE,images=DIR --output data/b
    python -m input_pipeline.prepare index --input 'tars/*.tar' --output index/c

`webdataset` reads downloaded tars, `source` any data source; both write ArrayRecord shards.
`index` makes tars readable where they are. All of them may lie in a bucket (gs://...), and all can
work on a cluster (--runner). A killed command continues where it stopped when it is given again.
`python -m input_pipeline.prepare COMMAND --help` tells the arguments of each.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console

from input_pipeline import command_line, records
from input_pipeline.checks import unicode
from input_pipeline.checks.paths import is_url
from input_pipeline.checks.ranges import whole
from input_pipeline.command_line import (
    SOURCE,
    SOURCE_HELP,
    Parser,
    add_workers,
    fields,
    open_source,
    parse_arguments,
    path_argument,
    written_source,
)
from input_pipeline.duplicates import dropped
from input_pipeline.files import listing
from input_pipeline.files.whole import write_json
from input_pipeline.prepare import description, packing, parts, shards
from input_pipeline.prepare.filters import Rules, Tally
from input_pipeline.sources import kept_source
from input_pipeline.tars import index as tar_index
from input_pipeline.tars import samples as tar_samples
from input_pipeline.words.labelling import Labeller, LabelRule
from input_pipeline.words.mining import MODES
from input_pipeline.words.vocabulary import Vocabulary
from input_pipeline.workers import say


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = Parser(prog="python -m input_pipeline.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "webdataset",
        help="tars of image + .json and/or .txt -> shards",
        description="One shard per tar. Images are checked and stored as they are.\n\n"
        "    python -m input_pipeline.prepare webdataset --input 'tars/*.tar' --captions txt "
        "--output data/mine",
    )
    _add_tars(command)
    command.add_argument(
        "--captions",
        required=True,
        type=fields,
        metavar="FIELD,...",
        help="JSON fields that hold a caption or a list of captions; txt is the .txt file",
    )
    command.add_argument(
        "--split-sentences",
        action="store_true",
        help="split captions at full stops and line ends, as COSMOS expects",
    )
    _add_output(command)
    _add_rules(command)
    command.set_defaults(run=_run_webdataset)
    command = commands.add_parser(
        "source",
        help="any data source (images beside tables, COCO, TFDS, mixtures, ...) -> shards",
        description="Stores all fields of the source's records. Images are checked and stored as "
        "they are.\n\n"
        "    python -m input_pipeline.prepare source --input coco:annotations=FILE,images=DIR "
        "--output data/coco",
    )
    command.add_argument("--input", metavar=SOURCE, help=f"{SOURCE_HELP} (required)")
    command.add_argument(
        "--records-per-shard", type=whole(1), default=5000, metavar="N", help="of a full shard"
    )
    _add_output(command)
    _add_rules(command)
    command.set_defaults(run=_run_source)
    command = commands.add_parser(
        "index",
        help="tars, to be read where they are",
        description="Finds the samples of every tar, for the sources webdataset and table. Images "
        "are not looked at.\n\n"
        "    python -m input_pipeline.prepare index --input 'tars/*.tar' --output index/mine",
    )
    _add_tars(command)
    _add_output(command)
    command.set_defaults(run=_run_index)
    former = _former_source(sys.argv[1:] if argv is None else argv)
    if former:
        new = shlex.quote(former)
        print(f"error: A source is one word now: give --input {new}.", file=sys.stderr)
        return 1
    args = parser.parse_job(argv)
    return command_line.run_job(args.run, args)


def _former_source(words: list[str]) -> str:
    """The source that a command line names as it was written once; "" of one of today."""
    if words[:1] != ["source"]:
        return ""
    name, *pairs = *itertools.takewhile(lambda word: not word.startswith("-"), words[1:]), ""
    return f"{name}:{','.join(pairs[:-1])}".rstrip(":")


def _add_tars(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input", required=True, metavar="'DIR/*.tar'", help="pattern of the tars, in quotes"
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="DIR",
        help="directory to write, made if missing",
    )
    add_workers(command)


def _add_rules(command: argparse.ArgumentParser) -> None:
    rules = command.add_argument_group("filters and labels", "all off by default")
    rules.add_argument(
        "--max-aspect-ratio",
        type=float,
        metavar="X",
        help="drop images whose longer side is more than X times the shorter one",
    )
    rules.add_argument(
        "--min-side", type=int, metavar="PIXELS", help="drop images with a shorter side than this"
    )
    for bound, outside in (("min", "shorter"), ("max", "longer")):
        rules.add_argument(
            f"--{bound}-caption-words",
            type=int,
            metavar="N",
            help=f"remove captions of {outside} length, and drop records without any left",
        )
    rules.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="drop images of the same bytes as an earlier one; reads the input twice",
    )
    rules.add_argument(
        "--drop",
        type=path_argument,
        metavar="FILE.parquet",
        help="drop the records of a list that input_pipeline.duplicates made of this very input",
    )
    rules.add_argument(
        "--drop-data",
        metavar="NAME",
        help="which data set of the list this is: the name of its directory of hashes; needed if "
        "the list is of several",
    )
    rules.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="make larger images this small on their shorter side (JPEG, quality 95)",
    )
    rules.add_argument(
        "--labels",
        type=path_argument,
        metavar="VOCABULARY.tsv",
        help="store the classes that the captions of each record name (CatLIP); the file is one "
        "of input_pipeline.vocabulary",
    )
    rules.add_argument(
        "--label-captions",
        type=fields,
        metavar="FIELD,...",
        help="caption fields that labels come from; by default those the vocabulary was counted "
        "from",
    )
    rules.add_argument(
        "--label-mode",
        choices=MODES,
        help="how captions become synsets; by default as the vocabulary was counted",
    )

    rules.add_argument(
        "--pack",
        metavar="KEY=VALUE,...",
        help="put several records into one, for rows of the views cogvlm with these arguments "
        "(image_size, image_token_size, tokenizer, context_length, max_images, tasks, "
        "history=turns, ...); says whether it pays",
    )


def _run_webdataset(args: argparse.Namespace) -> int:
    jobs = []
    tars = tar_samples.find_tars(args.input)
    for tar, (size, modified) in zip(tars, listing.status(tars).tolist()):
        jobs.append(
            shards.Job(
                name=str(tar),
                file=tar.stem + shards.SHARD_SUFFIX,
                origin={"file": tar.name, "bytes": size},
                modified=str(modified),
                size=size / 1e6,
                read=functools.partial(
                    tar_samples.read_records, tar, args.captions, args.split_sentences
                ),
            )
        )
    options = {
        "command": args.command,
        "captions": list(args.captions),
        "split_sentences": args.split_sentences,
    }
    pattern, captions = PurePosixPath(args.input).name, ",".join(args.captions)
    arguments = [args.command, "--input", pattern, "--captions", captions]
    if args.split_sentences:
        arguments.append("--split-sentences")
    check = functools.partial(tar_samples.check_fields, tars, args.captions)
    return _prepare(args, jobs, options, arguments, [args.input], "MB", check=check)


def _run_source(args: argparse.Namespace) -> int:
    if args.input is None:
        raise ValueError(f"Give --input {SOURCE}; see --help.")
    name, given, source = open_source(args.input)
    if source.weights is not None:
        raise ValueError(
            "Shards keep no weights: prepare the sources of the mixture one by one, and mix the "
            "prepared ones in the config."
        )
    jobs = parts.cut(name, given, source, args.records_per_shard, _read_source)
    reads = command_line.places(given)
    # Where the data lies decides nothing, and is nobody's business.
    given = {key: without_folder(value) for key, value in given.items()}
    options = {
        "command": args.command,
        "name": name,
        "arguments": given,
        "records_per_shard": args.records_per_shard,
    }
    arguments = [args.command, "--input", written_source(name, given)]
    arguments += ["--records-per-shard", str(args.records_per_shard)]
    extra = parts.about(source)
    for what, count in extra.get("left_out", {}).items():
        say(Console(), f"Left out: {count:,} {what}.")
    return _prepare(args, jobs, options, arguments, reads, "records", extra)


def _run_index(args: argparse.Namespace) -> int:
    tar_index.build(args.input, args.output, _runner(args, [args.input]))
    return 0


def _prepare(
    args: argparse.Namespace,
    jobs: list[shards.Job],
    options: dict[str, Any],
    arguments: list[str],
    reads: Iterable[str],
    unit: str,
    extra: dict[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Writes the shards of all jobs, which read `reads`, where some are to be written and `check`
    raises nothing, and their description, with `extra`; returns the exit code."""
    rules = Rules(
        max_aspect_ratio=args.max_aspect_ratio,
        min_side=args.min_side,
        min_caption_words=args.min_caption_words,
        max_caption_words=args.max_caption_words,
        drop_duplicates=args.drop_duplicates,
        resize=args.resize,
    )
    unicode.check(str(args.output), "--output")
    options, extra = {**options, **rules.options()}, extra or {}
    arguments = arguments + rules.arguments()
    if args.drop_data is not None and args.drop is None:
        raise ValueError("--drop-data says which data set of --drop this is: give both.")
    if args.drop is not None:
        # Found before the first sample is read; what it says decides whether shards are kept.
        data = dropped.choose(args.drop, args.drop_data)
        options["drop"] = dropped.fingerprint(args.drop, data)
        arguments += ["--drop", args.drop.name, "--drop-data", data]
    labeller = None
    for name, value in (("mode", args.label_mode), ("captions", args.label_captions)):
        if args.labels is None and value:
            raise ValueError(f"--label-{name} says how --labels is to be used: give both.")
    if args.labels is not None and args.pack is not None:
        raise ValueError("--pack and --labels are for different models: give one of them.")
    if args.labels is not None:
        rule = LabelRule(Vocabulary.load(args.labels), args.label_captions, args.label_mode)
        labeller = Labeller(rule)
        options["labels"] = extra["label_vocabulary"] = rule.description()
        arguments += ["--labels", args.labels.name, "--label-mode", rule.miner.mode]
        if rule.caption_fields is not None:
            arguments += ["--label-captions", ",".join(rule.caption_fields)]
    packer = None
    if args.pack is not None:
        packer = _packer(args.pack)
        options["pack"] = packer.views.options()
        arguments += ["--pack", packer.argument()]
    run = _runner(args, reads)
    started = time.monotonic()
    console = Console()
    with contextlib.ExitStack() as stack:
        if args.drop is not None:
            place = stack.enter_context(dropped.sorted_for(args.drop, data, args.output))
            path = os.fspath(place)
            kept = [functools.partial(dropped.without, job.read, path) for job in jobs]
            jobs = [dataclasses.replace(job, read=read) for job, read in zip(jobs, kept)]
        written = shards.write(
            jobs, args.output, options, rules, run, unit, console, labeller, check, packer
        )
    if not any(shard["records"] for shard in written):
        examples = [shard["first_dropped"] for shard in written if shard["dropped"]]
        if not examples:
            raise ValueError("No record is left: the input has no sample.")
        raise ValueError(
            f"No record is left: every sample was dropped ({description.dropped(written)}), e.g. "
            f"{examples[0]}."
        )
    lines: list[str] = []
    if packer is not None:
        counts = sum((Counter(shard["packs"]) for shard in written), Counter())
        extra["packs"], lines = packing.report(counts, packer)
    contents = description.describe(written, arguments) | extra
    dataset_file = args.output / records.DATASET_FILE
    write_json(dataset_file, contents)
    description.summary(console, contents, time.monotonic() - started)
    for line in lines:
        say(console, line)
    say(console, f"Wrote {dataset_file}")
    if args.drop is not None and not contents["dropped"].keys() & set(dropped.REASONS):
        say(console, f"No record is on {args.drop}: was that list made of this very input?")
    return 0


def _packer(text: str) -> packing.Packer:
    try:
        return packing.Packer(parse_arguments(text, "--pack"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--pack: {error}") from None


def _runner(args: argparse.Namespace, reads: Iterable[str | os.PathLike]) -> shards.Run:
    return command_line.runner(args, args.output / ".beam", reads)


def _read_source(
    name: str, arguments: str, fingerprint: str, indices: range, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id, record) for some records of a source, see `kept_source`."""
    source = kept_source(name, arguments, fingerprint)
    for index in indices:
        record = source[index]
        tally.samples += 1
        yield record["id"], record


def without_folder(value: Any) -> Any:
    """Reduces absolute paths, and URLs, to their last component."""
    if isinstance(value, dict):
        return {key: without_folder(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folder(item) for item in value]
    is_place = isinstance(value, str) and (os.path.isabs(value) or is_url(value))
    return PurePosixPath(value).name if is_place else value
