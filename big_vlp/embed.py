"""Writes the features of a set of images into one file, and those of their captions where asked.

    python -m big_vlp.embed --model runs/clip --images 'photos/**/*.jpg' --output photos.npz
    python -m big_vlp.embed --model runs/clip --images data/coco --captions txt --output coco.npz

A command that was killed goes on when it is given again. On a cluster every process runs the same
command, and the devices of all share the images. FILE.npz holds `ids` and `image` [N, D], with
--captions also `caption_ids`, `captions` and `text` [M, D]; FILE.parquet a row per image. The id of
a file is its path, that of a record its own. Images that cannot be read are left out, counted, and
named in FILE.broken.jsonl.
"""

import argparse
import functools
import re
import sys

import jax
from absl import logging

import big_vlp
from big_vlp import command
from big_vlp.api.embeddings import EmbedError, broken_file, embed
from big_vlp.parallel import cluster, processes
from big_vlp.run.compile_cache import open_compile_cache
from input_pipeline import command_line
from input_pipeline.checks.ranges import whole
from input_pipeline.files.listing import IMAGE_EXTENSIONS
from input_pipeline.sources import Source, make_source


def main(argv: list[str] | None = None) -> int:
    logging.set_verbosity(logging.ERROR)  # of the libraries
    return command_line.run(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    cluster.connect_processes()
    try:
        with processes.telling(functools.partial(print, file=sys.stderr), lambda: None):
            open_compile_cache()
            source = open_images(args.images)
            model = big_vlp.load(args.model, args.weights)
            made = embed(model, source, args.output, args.captions, args.batch_size, _say)
    except Exception as error:
        return processes.end(error)
    captions = f" and {made.captions:,} captions" if args.captions else ""
    _say(f"Wrote {args.output}: {made.images:,} images{captions}.")
    if made.broken:
        _say(f"{made.broken:,} images cannot be used; {broken_file(args.output)} says why.")
    return 0


def open_images(text: str) -> Source:
    """The source of --images.

    Raises:
      EmbedError: there are no such images.
    """
    is_file = text.lower().endswith(tuple(f".{end}" for end in IMAGE_EXTENSIONS))
    is_pattern = is_file or any(mark in text for mark in "*?[")
    try:
        if is_pattern and not re.match(r"[A-Za-z_][\w.]*:\w+=", text):
            return make_source("files", path=text)
        return command_line.open_source(text)[2]
    except (OSError, ValueError) as error:
        raise EmbedError(f"--images {text}: {error}") from error


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(prog="python -m big_vlp.embed", description=__doc__)
    add = parser.add_argument
    command.add_model(parser)
    add(
        "--images",
        required=True,
        metavar=f"GLOB|{command_line.SOURCE}",
        help="image files, by a pattern with *, ?, [0-9] and ** ('photos/**/*.jpg'); or "
        f"{command_line.SOURCE_HELP}",
    )
    add(
        "--output",
        required=True,
        type=command_line.path_argument,
        metavar="FILE",
        help="the file to write, .npz or .parquet, here or in a bucket",
    )
    add(
        "--captions",
        type=command_line.fields,
        default=(),
        metavar="FIELD,...",
        help="fields of the source's captions to embed, too; by default none",
    )
    add(
        "--batch-size",
        type=whole(1),
        default=256,
        metavar="N",
        help="images that run at once, on all devices together",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
