"""Builds a vocabulary of data sets:

    python -m input_pipeline.vocabulary --input data/cc3m --threshold 500 --output vocabulary.tsv

Beside the vocabulary it writes, with other endings: .json, what it covers of the captions, and
.png, counts by rank. `words.mining` says how captions become synsets; every occurrence counts (the
paper, arXiv 2404.15653, does not say whether repeated words do).
"""

import argparse
import os
import sys

from input_pipeline.checks.paths import path_argument
from input_pipeline.words import beam, count, report
from input_pipeline.words.mining import MODES


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.vocabulary",
        description="Counts the synsets that captions name and keeps the frequent ones.",
        epilog="With --runner, options that are not listed here go to Apache Beam.",
    )
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="DIR|NAME:KEY=VALUE,...",
        help="prepared shards, or any data source with its arguments; may be repeated",
    )
    parser.add_argument("--output", required=True, type=path_argument, metavar="FILE.tsv")
    parser.add_argument(
        "--threshold",
        type=_from(0),
        default=500,
        metavar="N",
        help="keep synsets that occur more than N times (default: 500, as published)",
    )
    parser.add_argument(
        "--size", type=_from(1), metavar="N", help="keep only the N most frequent of them"
    )
    parser.add_argument(
        "--captions",
        type=lambda text: tuple(map(str.strip, text.split(","))),
        metavar="FIELD,...",
        help="caption fields that count (default: all)",
    )
    parser.add_argument(
        "--mode", choices=MODES, default=MODES[0], help="how captions become synsets"
    )
    parser.add_argument(
        "--workers",
        type=_from(1),
        default=os.cpu_count(),
        metavar="N",
        help="processes (default: one per CPU); the output does not depend on it",
    )
    parser.add_argument(
        "--runner", metavar="NAME", help="count on Apache Beam instead, e.g. DirectRunner"
    )
    args, more = parser.parse_known_args(argv)
    if more and not args.runner:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        if args.output.suffix != ".tsv":
            raise ValueError(f"--output must end in .tsv, got {str(args.output)!r}.")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        job = count.plan(args.input, args.captions, args.mode)
        if args.runner:
            totals = beam.run(job, args.output, args.runner, more)
        else:
            totals = count.run(job, args.workers)
        report.write(totals, job, args.threshold, args.size, args.output)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _from(lowest: int):
    """A parser of whole numbers from `lowest` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {lowest} on")
        return int(text)

    return number
