"""Commands about a whole source: `retrieval`, `mistakes`, `predictions`."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import big_vlp
from big_vlp import command
from big_vlp.run.compile_cache import open_compile_cache
from big_vlp.show import answers, mistakes, of_images, retrieval
from evaluators.answers.shared.command import open_scored
from evaluators.datasets import tables
from input_pipeline.checks.ranges import whole
from input_pipeline.command_line import SOURCE, SOURCE_HELP, open_source, path_argument
from input_pipeline.files.whole import write_whole


def add(commands) -> None:
    _add_retrieval(commands)
    _add_mistakes(commands)
    _add_predictions(commands)


def _add_of_source(parser: argparse.ArgumentParser, output: str) -> None:
    """What pictures of a model and a source have in common."""
    command.add_model(parser)
    _add_input_and_output(parser, output, "PNG", "the picture to write")


def _add_input_and_output(parser, output: str, metavar: str, what: str) -> None:
    parser.add_argument("--input", required=True, metavar=SOURCE, help=SOURCE_HELP)
    parser.add_argument(
        "--output", type=path_argument, default=Path(output), metavar=metavar, help=what
    )


def _source_and_model(args: argparse.Namespace):
    of_images.check_output(args.output)
    _, _, source = open_source(args.input)
    if not len(source):
        raise ValueError(f"--input {args.input} has no records.")
    open_compile_cache()
    return source, big_vlp.load(args.model, args.weights)


def _add_retrieval(commands) -> None:
    parser = commands.add_parser(
        "retrieval",
        help="the images that a model finds for texts, and the texts for images",
        description="Draws the nearest images of texts and the nearest texts of images; the right "
        "ones are ticked.\n\n"
        "    python -m big_vlp.show retrieval --model runs/clip --input data/coco_val2017 "
        "--caption-field txt",
    )
    _add_of_source(parser, "retrieval.png")
    parser.add_argument(
        "--caption-field", required=True, metavar="FIELD", help="whose captions are searched"
    )
    parser.add_argument(
        "--text",
        action="extend",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="texts to search by; by default captions of the images that are asked",
    )
    parser.add_argument(
        "--queries", type=whole(1), default=5, metavar="N", help="so many images are asked"
    )
    parser.add_argument(
        "--top", type=whole(1), default=5, metavar="K", help="so many answers to each"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="another one asks other images"
    )
    parser.set_defaults(run=_retrieval)


def _retrieval(args: argparse.Namespace) -> None:
    source, model = _source_and_model(args)
    found = retrieval.search(
        model, source, args.caption_field, args.text, args.queries, args.top, args.seed
    )
    title = f"{args.model}: {len(source):,} images of {args.input}, {args.caption_field}"
    write_whole(args.output, retrieval.draw(found, source, title))
    print(f"Wrote {args.output}.")


def _add_predictions(commands) -> None:
    parser = commands.add_parser(
        "predictions",
        help="a page of a model's answers: images, questions, boxes, what is right",
        description="Makes a page of the answers in a file: each image with its question, what was "
        "answered,\nwhat is right, the boxes of both, and the score; to filter, to search and to "
        "sort in a browser.\nThe page is one file that holds its images.\n\n"
        "    python -m big_vlp.show predictions --predictions vqav2.json --input data/vqav2_val "
        "--metric vqa",
    )
    parser.add_argument(
        "--predictions",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="answers, one for each question",
    )
    parser.add_argument(
        "--metric",
        required=True,
        metavar="NAME:KEY=VALUE,...",
        help="what they are scored by, as in python -m evaluators.answers; with by=FIELD the page "
        "tells groups apart",
    )
    _add_input_and_output(parser, "predictions.html", "FILE", "the page to write")
    parser.add_argument(
        "--limit",
        type=whole(1),
        default=1000,
        metavar="N",
        help="show at most so many, evenly spread over the data; scores are of all "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=whole(16),
        default=320,
        metavar="PIXELS",
        help="the longer side of larger images; the file grows with it (default: %(default)s)",
    )
    parser.set_defaults(run=_answers)


def _answers(args: argparse.Namespace) -> None:
    of_images.check_output(args.output)
    scored = open_scored(args.metric, args.input, args.predictions)
    title = f"{args.predictions}: {args.input}, {args.metric}"
    page = answers.make_page(scored, title, args.limit, args.size)
    write_whole(args.output, page.html)
    print(
        f"Wrote {args.output}: {page.shown:,} of {len(scored.texts):,} questions, "
        f"{len(page.html) / 1e6:.1f} MB."
    )


def _add_mistakes(commands) -> None:
    parser = commands.add_parser(
        "mistakes",
        help="the mistakes in classifying that a model is surest of",
        description="Classifies the images of a source, zero-shot or by a model's head, and draws "
        "the mistakes that the model is surest of.\n\n"
        "    python -m big_vlp.show mistakes --model runs/clip --input folders:path=pets "
        "--template 'a photo of a {}.'",
    )
    _add_of_source(parser, "mistakes.png")
    parser.add_argument(
        "--class-names",
        metavar="NAME",
        help="a published list of what the classes are called, such as imagenet1k; by default the "
        "source's own",
    )
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt with {} in the place of the class; may be repeated, for their mean",
    )
    parser.add_argument("--top", type=whole(1), default=12, metavar="K", help="so many mistakes")
    parser.set_defaults(run=_mistakes)


def _mistakes(args: argparse.Namespace) -> None:
    names = args.class_names and tables.class_names(args.class_names)
    source, model = _source_and_model(args)
    found = mistakes.classify(model, source, names, args.template)
    table = Table(title=f"{found.accuracy:.1%} of {found.images:,} images are right")
    for column in ("said", "probability", "is", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    for one in found.mistakes[: args.top]:
        said, true = f"{one.probability:.3f}", f"{one.true_probability:.3f}"
        table.add_row(one.predicted, said, one.true, true)
    console = Console()
    console.print(table)
    title = f"{args.model}: {args.input}"
    write_whole(args.output, mistakes.draw(found, source, title, args.top))
    console.print(f"Wrote {args.output}.")
