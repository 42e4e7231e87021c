r"""Finds copies of images within and across data sets, and test images among those for training.

    python -m input_pipeline.duplicates hash --input data/cc3m --output hashes/cc3m
    python -m input_pipeline.duplicates find --hashes hashes/cc3m --against hashes/coco_test \
      --output drop.parquet
    python -m input_pipeline.prepare source --input data/cc3m --drop drop.parquet --output data/b

`hash` reads every image once; `find` compares what it wrote; `prepare --drop` leaves out what
`find` lists. A killed command continues where it stopped when it is given again. `python -m
input_pipeline.duplicates COMMAND --help` tells the arguments of each.
"""

import argparse
import math

from rich.console import Console

from input_pipeline import command_line
from input_pipeline.checks.ranges import whole
from input_pipeline.command_line import (
    Parser,
    add_workers,
    parse_source,
    path_argument,
    places,
)
from input_pipeline.duplicates import finding, hamming, hashing, search
from input_pipeline.files.buckets import is_in_bucket, make_directory

DISTANCE, DETAIL, DIFFERENCE = 8, 40, 0.2  # by measurement, see docs/corpora.md


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = Parser(prog="python -m input_pipeline.duplicates", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "hash",
        help="images -> digests and perceptual hashes",
        description="Decodes every image once. Broken ones are left out and counted.\n\n"
        "    python -m input_pipeline.duplicates hash --input data/mine --output hashes/mine",
    )
    command.add_argument(
        "--input",
        required=True,
        metavar=command_line.SOURCE,
        help=f"{command_line.SOURCE_HELP}; or a pattern of tars in quotes, 'DIR/*.tar', without an "
        "index",
    )
    command.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="DIR",
        help="directory to write, made if missing; its name is that of the data set in lists",
    )
    add_workers(command)
    command.set_defaults(run=_hash)
    command = commands.add_parser(
        "find",
        help="hashes -> list of what to drop",
        description="Lists images that are exact or near copies of better ones, or of test images: "
        "id, reason, and which image they match.\n\n"
        "    python -m input_pipeline.duplicates find --hashes hashes/mine --output drop.parquet",
    )
    command.add_argument(
        "--hashes",
        required=True,
        nargs="+",
        type=path_argument,
        metavar="DIR",
        help="what `hash` wrote for each data set",
    )
    command.add_argument(
        "--against",
        nargs="+",
        default=[],
        type=path_argument,
        metavar="DIR",
        help="what `hash` wrote for test sets: images near one of theirs are dropped",
    )
    command.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="FILE.parquet",
        help="the list to write, on a disk; what is found meanwhile lies in FILE.parquet.parts",
    )
    command.add_argument(
        "--distance",
        type=whole(0),
        default=DISTANCE,
        metavar="BITS",
        help="most bits of 64 in which the hashes of near copies differ",
    )
    command.add_argument(
        "--detail",
        type=whole(0),
        default=DETAIL,
        metavar="BITS",
        help="most of 256 details, signs of frequencies, in which they differ",
    )
    command.add_argument(
        "--difference",
        type=float,
        default=DIFFERENCE,
        metavar="X",
        help="most that their thumbnails differ, as a share of their contrast",
    )
    command.add_argument(
        "--no-mirrored", action="store_true", help="mirror images are no copies: as for text"
    )
    add_workers(command)
    command.set_defaults(run=_find)
    args = parser.parse_job(argv)
    return command_line.run_job(args.run, args)


def _hash(args: argparse.Namespace) -> None:
    parts, unit = hashing.plan(args.input)
    is_pattern = args.input.endswith(".tar")
    reads = [args.input] if is_pattern else places(parse_source(args.input)[1])
    run = command_line.runner(args, args.output / ".beam", reads)
    hashing.write(parts, args.output, run, unit, Console())


def _find(args: argparse.Namespace) -> None:
    if args.output.suffix != ".parquet" or is_in_bucket(args.output):
        raise ValueError(f"--output must be a file on a disk that ends in .parquet: {args.output}.")
    if args.distance > hamming.BITS:
        raise ValueError(f"--distance is at most {hamming.BITS}, the bits of a hash.")
    if not 0 <= args.difference < math.inf:
        raise ValueError(f"--difference must be 0 or more, got {args.difference}.")
    make_directory(args.output.parent)
    settings = search.Settings(args.distance, args.detail, args.difference, not args.no_mirrored)
    run = command_line.runner(
        args,
        args.output.with_name(f".{args.output.name}.beam"),
        [*args.hashes, *args.against],
    )
    finding.find(args.hashes, args.against, args.output, settings, run, Console())
