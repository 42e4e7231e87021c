"""Filters over the metadata of a corpus, before its images are downloaded or made shards.

    python -m input_pipeline.corpus filter --input 'meta/*.parquet' --max-aspect-ratio 6 \\
        --output kept
    python -m input_pipeline.corpus similarity --input 'kept/*.parquet' --embeddings mine.parquet \\
        --keep-fraction 0.3 --output best

Each table gives one parquet file of its name, with the rows that are kept and all their columns.
Beside them, report.json and report.png say what each rule dropped, and dropped.tsv shows some of
it. A killed command goes on when it is given again. `python -m input_pipeline.corpus COMMAND
--help` tells the arguments of each.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from input_pipeline import command_line
from input_pipeline.checks import unicode
from input_pipeline.checks.ranges import real, whole
from input_pipeline.command_line import Parser, add_workers, path_argument
from input_pipeline.corpus import columns, copies, jobs, report, scores, similarity
from input_pipeline.corpus.jobs import Job
from input_pipeline.corpus.rules import Listed, Rules
from input_pipeline.corpus.sift import sift
from input_pipeline.files import listing, tables
from input_pipeline.workers import say

_SHARE = real(0, 1)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = Parser(prog="python -m input_pipeline.corpus", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "filter",
        help="drop rows by what their columns say, and by their captions",
        description="Keeps the rows of metadata tables that pass all rules.\n\n"
        "    python -m input_pipeline.corpus filter --input 'meta/*.parquet' "
        "--max-aspect-ratio 6 --min-caption-words 3 --output kept",
    )
    _add_files(command, columns.KNOWN.keys() - {"id"})
    _add_rules(command)
    command.set_defaults(run=_run_filter)
    command = commands.add_parser(
        "similarity",
        help="keep the rows whose image and caption a trained model finds most alike",
        description="Keeps the rows of metadata tables whose image and caption are most alike, by "
        "features that big_vlp.embed has written with --captions.\n\n"
        "    python -m input_pipeline.corpus similarity --input 'kept/*.parquet' "
        "--embeddings mine.parquet --keep-fraction 0.3 --output best",
    )
    _add_files(command, {"id", "caption"})
    command.add_argument(
        "--embeddings",
        required=True,
        type=_pattern,
        metavar="FILE",
        help="of big_vlp.embed with --captions, .npz or .parquet, or a pattern of several, in "
        "quotes; rows without any are dropped",
    )
    amount = command.add_mutually_exclusive_group(required=True)
    amount.add_argument(
        "--keep-fraction",
        type=real(above=0, high=1),
        metavar="F",
        help="keep just this share of the rows with embeddings; of equal ones the first",
    )
    amount.add_argument(
        "--threshold", type=real(-1, 1), metavar="COSINE", help="keep rows of this similarity"
    )
    command.set_defaults(run=_run_similarity)
    args = parser.parse_job(argv)
    return command_line.run_job(args.run, args)


def _add_files(command: argparse.ArgumentParser, kinds: set[str]) -> None:
    command.add_argument(
        "--input",
        required=True,
        type=_pattern,
        metavar="'DIR/*.parquet'",
        help="pattern of the tables, in quotes: parquet, here or in a bucket; .csv, .tsv or .arrow",
    )
    command.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KIND=NAME",
        help=f"which column holds what ({', '.join(sorted(kinds))}); needed where none has a name "
        "that is known, or several have; may be repeated",
    )
    command.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="DIR",
        help="directory to write, made if missing",
    )
    add_workers(command)
    command.set_defaults(kinds=kinds)


def _add_rules(command: argparse.ArgumentParser) -> None:
    rules = command.add_argument_group(
        "rules", "all off by default; applied in this order, and a row counts at the first it fails"
    )
    side, number = whole(1), whole(1)

    def add(name: str, kind: Any, value: str, text: str) -> None:
        rules.add_argument(f"--{name}", type=kind, metavar=value, help=f"drop {text}")

    add("max-aspect-ratio", real(1), "X", "images whose longer side is more than X times the other")
    add("min-side", side, "PIXELS", "images with a shorter side than this")
    add("max-side", side, "PIXELS", "images with a longer side than this")
    add("max-nsfw", _SHARE, "P", "rows of a higher NSFW score")
    add("nsfw-tags", _names, "TAG,...", "rows with another NSFW tag than these, e.g. UNLIKELY")
    add("max-watermark", _SHARE, "P", "rows of a higher watermark score")
    add("min-similarity", real(-1, 1), "COSINE", "rows of a lower similarity")
    add("languages", _names, "CODE,...", "rows in another language than these, e.g. en,de")
    for what, meaning in (("words", ""), ("characters", ", in code points")):
        add(f"min-caption-{what}", number, "N", f"shorter captions{meaning}")
        add(f"max-caption-{what}", number, "N", f"longer captions{meaning}")
    add("min-letters", _SHARE, "SHARE", "captions with fewer letters in what is no white space")
    add("max-repeated-words", _SHARE, "SHARE", "captions where more words were there before in it")
    add("max-caption-copies", number, "N", "captions that more than N rows have; reads them twice")
    add("drop-words", str, "FILE", "captions with a word or phrase of a list, one a line")
    add("drop-domains", str, "FILE", "URLs of a domain of a list, one a line, or below it")
    rules.add_argument(
        "--keep-missing",
        action="store_true",
        help="let rows pass that have no value for a rule; else they are dropped, and counted",
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no comma list")
    return names


def _run_filter(args: argparse.Namespace) -> int:
    values = {name: getattr(args, name) for name in Rules.__dataclass_fields__}
    reads = [args.input]
    for name in ("drop_words", "drop_domains"):
        if values[name]:
            reads.append(values[name])
            values[name] = Listed.of(values[name])
    rules, given, console = Rules(**values), _given(args), Console()
    planned = jobs.plan(args.input)
    run = command_line.runner(args, args.output / ".beam", reads)
    kinds = {kind for check in rules.checks() for kind in check.kinds}
    _check_columns(planned, kinds, given)
    options = {
        "command": args.command,
        **rules.options(),
        "keep_missing": args.keep_missing,
        "columns": given,
    }
    found, done = jobs.finished(planned, args.output, options, {})
    if done:
        say(console, f"All {len(planned)} files are finished already.")
        infos = [found[job.file] for job in planned]
    else:
        frequent, given_by_others = (), {}
        if rules.max_caption_copies is not None:
            frequent, digest = copies.find_frequent(
                planned, args.output, given, rules.max_caption_copies, run, console
            )
            given_by_others = {"frequent_captions": digest}
        about = {"options": options, "given": given_by_others}
        more = rules, frequent, given, args.keep_missing
        tasks = [(job, about, more) for job in planned]
        infos = jobs.write(filter_table, tasks, args.output, found, run, console)
    _finish(args, infos, options, console)
    return 0


def filter_table(
    job: Job,
    output: Any,
    about: dict[str, Any],
    rules: Rules,
    frequent: Sequence[Any],
    given: dict[str, list[str]],
    keep_missing: bool,
) -> dict[str, Any] | str:
    """`sift` by rules; `frequent` are the files of `copies.find_frequent`."""

    def write() -> dict[str, Any]:
        checks = rules.checks(copies.load(frequent) if frequent else None)
        return sift(job, output, about, checks, given, keep_missing)

    return jobs.attempt(job.table, write)


def _pattern(text: str) -> str:
    """Reads a path with wildcards, as argparse wants it; refuses what `path_argument` does."""
    path_argument(text)
    return text


def _run_similarity(args: argparse.Namespace) -> int:
    given, console = _given(args), Console()
    embeddings = similarity.find_embeddings(args.embeddings)
    planned = jobs.plan(args.input)
    run = command_line.runner(args, args.output / ".beam", [args.input, args.embeddings])
    _check_columns(planned, scores.kinds(given), given)
    options = {
        "command": args.command,
        "embeddings": [[file.path.name, file.bytes] for file in embeddings],
        "keep_fraction": args.keep_fraction,
        "threshold": args.threshold,
        "columns": given,
    }
    # Not in the report: the same embeddings, copied, give the same one.
    made = {"embeddings": listing.fingerprint(*(f"{file.modified} " for file in embeddings))}
    found, done = jobs.finished(planned, args.output, options, made)
    if done:
        say(console, f"All {len(planned)} files are finished already.")
        before = json.loads((args.output / jobs.REPORT).read_bytes())
        counts = np.array(before["similarities"]["rows"])
        infos = [found[job.file] for job in planned]
        _finish(args, infos, before["options"], console, counts)
        return 0
    files = similarity.match(planned, embeddings, args.output, given, run, console)
    rows = similarity.Mapped(files)
    cut, ties = args.threshold, [None] * len(rows)
    if args.keep_fraction is not None:
        cut, ties = similarity.choose(rows, args.keep_fraction)
    tasks = [
        (job, {"options": options, "given": {**made, "cut": cut, "ties": tied}}, (file, cut, tied))
        for job, file, tied in zip(planned, files, ties)
    ]
    infos = jobs.write(similarity.sift_best, tasks, args.output, found, run, console)
    _finish(args, infos, {**options, "cut": cut}, console, similarity.histogram(rows))
    return 0


def _given(args: argparse.Namespace) -> dict[str, list[str]]:
    """Kind -> columns, of --column."""
    unicode.check(str(args.output), "--output")
    given: dict[str, list[str]] = {}
    for text in args.column:
        kind, equals, name = text.partition("=")
        kind = kind.replace("-", "_")
        if not (equals and name) or kind not in args.kinds:
            raise ValueError(
                f"--column {text!r}: give KIND=NAME, of {', '.join(sorted(args.kinds))}."
            )
        given.setdefault(kind, []).append(name)
    for kind, names in given.items():
        if len(names) > 1 and kind not in columns.SCORES:
            raise ValueError(f"--column {kind}=...: give one column, not {' and '.join(names)}.")
    return given


def _check_columns(planned: Sequence[Job], kinds: set[str], given: dict[str, list[str]]) -> None:
    """Of the first table that can be read, so that a wrong name does not fail all, one by one."""
    for job in planned:
        try:
            names = tables.stream(job.table, 1)[0].names
        except (OSError, ValueError):
            continue  # named when its turn comes
        try:
            for kind in sorted(kinds):
                columns.find(kind, names, given)
        except ValueError as error:
            raise ValueError(f"{job.table}: {error}.") from None
        return


def _finish(args, infos, options: dict[str, Any], console: Console, similarities=None) -> None:
    report.write(infos, options, args.output, console, similarities)
    jobs.clear(args.output)
    kept = sum(info["kept"] for info in infos)
    if not kept:
        raise ValueError("No row is left; see the table above for what each rule drops.")
    say(console, f"Kept {kept:,} rows in {len(infos)} files of {args.output}")
