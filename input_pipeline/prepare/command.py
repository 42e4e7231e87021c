"""Turns data into checked shards for training: `python -m input_pipeline.prepare --help`.

`webdataset` reads downloaded tars, `source` any data source, `index` makes tars readable in place.
A killed command continues where it stopped when it is given again, see `shards`.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from input_pipeline import records
from input_pipeline.checks import unicode
from input_pipeline.checks.paths import path_argument
from input_pipeline.files import listing
from input_pipeline.files.whole import write_json
from input_pipeline.prepare import description, filters, shards
from input_pipeline.prepare.filters import Rules, Tally
from input_pipeline.sources import kept_source, make_source
from input_pipeline.tars import index as tar_index
from input_pipeline.tars import samples as tar_samples
from input_pipeline.words.labelling import Labeller, LabelRule
from input_pipeline.words.mining import MODES
from input_pipeline.words.vocabulary import Vocabulary
from input_pipeline.workers import say


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.prepare",
        description="Turns data into ArrayRecord shards for training. An interrupted run continues "
        "where it stopped.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "webdataset",
        help="WebDataset tars: image + .json and/or .txt",
        description="One shard per tar. Images are checked and stored as they are.",
    )
    _add_tars(command)
    command.add_argument(
        "--captions",
        required=True,
        type=_field_list,
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
        help="any data source: tables with images, COCO captions, TFDS, mixtures, ...",
        description="Stores all fields of the source's records. Images are checked and stored as "
        "they are.",
    )
    command.add_argument("name", metavar="NAME", help="a data source; my_lab.mine: your own")
    command.add_argument(
        "arguments",
        nargs="*",
        type=_key_value,
        metavar="KEY=VALUE",
        help='its arguments: JSON (true, 3, \'["a", "b"]\') or else text',
    )
    command.add_argument("--records-per-shard", type=_positive, default=5000, metavar="N")
    _add_output(command)
    _add_rules(command)
    command.set_defaults(run=_run_source)
    command = commands.add_parser(
        "index",
        help="WebDataset tars, to be read where they are",
        description="Finds the samples of every tar, for the sources webdataset and table. Images "
        "are not looked at. An interrupted run continues where it stopped.",
    )
    _add_tars(command)
    _add_output(command)
    command.set_defaults(run=_run_index)
    args = parser.parse_args(argv)
    unicode.escape_output()
    try:
        return args.run(args)
    except KeyboardInterrupt:
        say(Console(), "Interrupted. Run the same command to continue.")
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _add_tars(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input", required=True, metavar="'DIR/*.tar'", help="pattern of the tars, in quotes"
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", required=True, type=path_argument, metavar="DIR")
    command.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count(),
        metavar="N",
        help="processes (default: one per CPU); the output does not depend on it",
    )


def _add_rules(command: argparse.ArgumentParser) -> None:
    rules = command.add_argument_group("filters", "all off by default")
    rules.add_argument(
        "--max-aspect-ratio", type=float, metavar="X", help="of the longer to the shorter side"
    )
    rules.add_argument("--min-side", type=int, metavar="PIXELS", help="of the shorter side")
    for bound, outside in (("min", "shorter"), ("max", "longer")):
        rules.add_argument(
            f"--{bound}-caption-words",
            type=int,
            metavar="N",
            help=f"{outside} captions are removed, records without any left dropped",
        )
    rules.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="drop images of the same bytes as an earlier one; reads the input twice",
    )
    command.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="make larger images this small on their shorter side (JPEG, quality 95)",
    )
    command.add_argument(
        "--labels",
        type=Path,
        metavar="VOCABULARY",
        help="store the classes that the captions of each record name (CatLIP), see "
        "input_pipeline.vocabulary",
    )
    command.add_argument(
        "--label-captions",
        type=_field_list,
        metavar="FIELD,...",
        help="caption fields that labels come from (default: those the vocabulary was counted "
        "from)",
    )
    command.add_argument(
        "--label-mode",
        choices=MODES,
        help="how captions become synsets (default: as the vocabulary was counted)",
    )


def _field_list(given: str) -> tuple[str, ...]:
    fields = tuple(field.strip() for field in given.split(","))
    if not all(fields) or len(set(fields)) < len(fields) or not unicode.is_valid(given):
        raise argparse.ArgumentTypeError(f"{given!r} is not a comma list of different fields")
    return fields


def _key_value(given: str) -> tuple[str, Any]:
    key, equals, value = given.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{given!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _positive(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is not a number from 1 on")
    return int(given)


def _run_webdataset(args: argparse.Namespace) -> int:
    jobs = []
    tars = tar_samples.find_tars(args.input)
    for tar in tars:
        status = tar.stat()
        jobs.append(
            shards.Job(
                name=str(tar),
                file=tar.stem + shards.SHARD_SUFFIX,
                origin={"file": tar.name, "bytes": status.st_size},
                modified=str(status.st_mtime_ns),
                size=status.st_size / 1e6,
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
    pattern, captions = Path(args.input).name, ",".join(args.captions)
    arguments = [args.command, "--input", pattern, "--captions", captions]
    if args.split_sentences:
        arguments.append("--split-sentences")
    check = functools.partial(tar_samples.check_fields, tars, args.captions)
    return _prepare(args, jobs, options, arguments, "MB", check=check)


def _run_source(args: argparse.Namespace) -> int:
    given = dict(args.arguments)
    if len(given) < len(args.arguments):
        raise ValueError("A KEY=VALUE argument is given twice.")
    try:
        source = make_source(args.name, **given)
    except TypeError as error:
        raise ValueError(f"source {args.name}: {error}") from None
    if source.weights is not None:
        raise ValueError(
            "Shards keep no weights: prepare the sources of the mixture one by one, and mix the "
            "prepared ones in the config."
        )
    fingerprint, length = source.fingerprint(), len(source)
    if not length:
        raise ValueError(f"source {args.name} has no records.")
    modified = listing.fingerprint(listing.status(source.files()).tobytes())
    jobs = []
    for number, first in enumerate(range(0, length, args.records_per_shard)):
        count = min(args.records_per_shard, length - first)
        jobs.append(
            shards.Job(
                name=f"{args.name}, records {first} to {first + count - 1}",
                file=f"{args.name}-{number:05d}{shards.SHARD_SUFFIX}",
                origin={"fingerprint": fingerprint, "first": first, "records": count},
                modified=modified,
                size=count,
                read=functools.partial(
                    _read_source, args.name, json.dumps(given), range(first, first + count)
                ),
            )
        )
    # Where the data lies decides nothing, and is nobody's business.
    given = {key: _without_folder(value) for key, value in given.items()}
    options = {
        "command": args.command,
        "name": args.name,
        "arguments": given,
        "records_per_shard": args.records_per_shard,
    }
    words = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in given.items()]
    arguments = [args.command, args.name, *words]
    arguments += ["--records-per-shard", str(args.records_per_shard)]
    names = source.class_names
    extra = {} if names is None else {"class_names": list(names)}
    if source.label_rule is not None:
        extra["label_vocabulary"] = source.label_rule
    return _prepare(args, jobs, options, arguments, "records", extra)


def _run_index(args: argparse.Namespace) -> int:
    tar_index.build(args.input, args.output, args.workers)
    return 0


def _prepare(
    args: argparse.Namespace,
    jobs: list[shards.Job],
    options: dict[str, Any],
    arguments: list[str],
    unit: str,
    extra: dict[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Writes the shards of all jobs, where some are to be written and `check` raises nothing, and
    their description, with `extra`; returns the exit code."""
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
    labeller = None
    for name, value in (("mode", args.label_mode), ("captions", args.label_captions)):
        if args.labels is None and value:
            raise ValueError(f"--label-{name} says how --labels is to be used: give both.")
    if args.labels is not None:
        rule = LabelRule(Vocabulary.load(args.labels), args.label_captions, args.label_mode)
        labeller = Labeller(rule)
        options["labels"] = extra["label_vocabulary"] = rule.description()
        arguments += ["--labels", args.labels.name, "--label-mode", rule.miner.mode]
        if rule.caption_fields is not None:
            arguments += ["--label-captions", ",".join(rule.caption_fields)]
    started = time.monotonic()
    console = Console()
    written = shards.write(
        jobs, args.output, options, rules, args.workers, unit, console, labeller, check
    )
    if not any(shard["records"] for shard in written):
        dropped = [item for shard in written for item in shard["dropped"]]
        if not dropped:
            raise ValueError("No record is left: the input has no sample.")
        raise ValueError(
            f"No record is left: every sample was dropped ({description.dropped(written)}), e.g. "
            f"{filters.reason_of(dropped[0])}."
        )
    contents = description.describe(written, arguments) | extra
    dataset_file = args.output / records.DATASET_FILE
    write_json(dataset_file, contents)
    description.summary(console, contents, time.monotonic() - started)
    say(console, f"Wrote {dataset_file}")
    return 0


def _read_source(
    name: str, arguments: str, indices: range, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id, record) for some records of a source; `arguments` as JSON."""
    source = kept_source(name, arguments)
    for index in indices:
        record = source[index]
        tally.samples += 1
        yield record["id"], record


def _without_folder(value: Any) -> Any:
    """Reduces absolute paths to their last component."""
    if isinstance(value, dict):
        return {key: _without_folder(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folder(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
