"""Builds a vocabulary of data sets, the classes of CatLIP: the synsets that their captions name.

    python -m input_pipeline.vocabulary --input data/cc3m --threshold 500 --output vocabulary.tsv

Beside the vocabulary it writes, with other endings: .json, what it covers of the captions, and
.png, counts by rank. `words.mining` says how captions become synsets; every occurrence counts (the
paper, arXiv 2404.15653, does not say whether repeated words do).
"""

import argparse

from input_pipeline import command_line
from input_pipeline.checks.ranges import whole
from input_pipeline.files.buckets import make_directory
from input_pipeline.words import count, report
from input_pipeline.words.mining import MODES


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = command_line.Parser(
        prog="python -m input_pipeline.vocabulary",
        description=__doc__,
    )
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar=command_line.SOURCE,
        help=f"{command_line.SOURCE_HELP}; may be repeated",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=command_line.path_argument,
        metavar="FILE.tsv",
        help="the vocabulary to write",
    )
    parser.add_argument(
        "--threshold",
        type=whole(0),
        default=500,
        metavar="N",
        help="keep synsets that occur more than N times (default: 500, as published)",
    )
    parser.add_argument(
        "--size", type=whole(1), metavar="N", help="keep only the N most frequent of them"
    )
    parser.add_argument(
        "--captions",
        type=command_line.fields,
        metavar="FIELD,...",
        help="caption fields that count; by default all",
    )
    parser.add_argument(
        "--mode", choices=MODES, default=MODES[0], help="how captions become synsets"
    )
    command_line.add_workers(parser)
    return command_line.run(_run, parser.parse_job(argv))


def _run(args: argparse.Namespace) -> None:
    if args.output.suffix != ".tsv":
        raise ValueError(f"--output must end in .tsv, got {str(args.output)!r}.")
    reads = command_line.places([command_line.parse_source(text)[1] for text in args.input])
    run = command_line.runner(args, args.output.with_name(f".{args.output.name}.beam"), reads)
    make_directory(args.output.parent)
    job = count.plan(args.input, args.captions, args.mode)
    totals = count.run(job, run)
    report.write(totals, job, args.threshold, args.size, args.output)
