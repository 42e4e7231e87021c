"""Commands about a whole source: `retrieval`, `predictions`."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import big_vlp
from big_vlp import command
from big_vlp.run.compile_cache import open_compile_cache
from big_vlp.show import answers, of_images, predictions, retrieval
from evaluators.answers.shared.command import open_scored
from evaluators.datasets import tables
from input_pipeline.checks.ranges import whole
from input_pipeline.command_line import SOURCE, SOURCE_HELP, open_source, path_argument
from input_pipeline.files.whole import write_whole


def add(commands) -> None:
    _add_retrieval(commands)
    _add_predictions(commands)


def _add_of_source(parser: argparse.ArgumentParser, output: str) -> None:
    """What pictures of a model and a source have in common."""
    command.add_model(parser)
    parser.add_argument("--input", required=True, metavar=SOURCE, help=SOURCE_HELP)
    parser.add_argument(
        "--output",
        type=path_argument,
        default=Path(output),
        metavar="PNG",
        help="the picture to write",
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
        help="where a model errs: a page of its answers, or its mistakes in classifying",
        description="Shows where a model errs.\n\n"
        "    python -m big_vlp.show predictions --predictions vqav2.json --data data/vqav2_val "
        "--metric vqa\n\n"
        "makes a page of the answers in a file: each image with its question, what was answered, "
        "what is\nright, the boxes of both, and the score; to filter, to search and to sort in a "
        "browser. The page is\none file that holds its images.\n\n"
        "    python -m big_vlp.show predictions --model runs/clip --input folders:path=pets "
        "--template 'a photo of a {}.'\n\n"
        "classifies the images of a source, zero-shot or by a model's head, and draws the mistakes "
        "that the\nmodel is surest of.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", metavar=SOURCE, help=SOURCE_HELP)
    source.add_argument(
        "--data",
        dest="input",
        metavar=SOURCE,
        help="the same, as python -m evaluators.answers calls it",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="FILE",
        help="the page or the picture to write (default: predictions.html or predictions.png)",
    )
    page = parser.add_argument_group("a page of answers")
    page.add_argument(
        "--predictions", type=path_argument, metavar="FILE", help="answers, one for each record"
    )
    page.add_argument(
        "--metric",
        metavar="NAME:KEY=VALUE,...",
        help="what they are scored by, as in python -m evaluators.answers; with by=FIELD the page "
        "tells groups apart",
    )
    page.add_argument(
        "--limit",
        type=whole(1),
        metavar="N",
        help="show at most so many, evenly spread over the data; scores are of all (default: 1000)",
    )
    page.add_argument(
        "--size",
        type=whole(16),
        metavar="PIXELS",
        help="the longer side of larger images; the file grows with it (default: 320)",
    )
    mistakes = parser.add_argument_group("mistakes in classifying")
    command.add_model(mistakes, required=False)
    mistakes.add_argument(
        "--class-names",
        metavar="NAME",
        help="a published list of what the classes are called, such as imagenet1k; by default the "
        "source's own",
    )
    mistakes.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a prompt with {} in the place of the class; may be repeated, for their mean",
    )
    mistakes.add_argument(
        "--top", type=whole(1), metavar="K", help="so many mistakes (default: 12)"
    )
    parser.set_defaults(run=_predictions)


_OF_ANSWERS = ("metric", "limit", "size")
_OF_MODEL = ("model", "weights", "class_names", "template", "top")


def _predictions(args: argparse.Namespace) -> None:
    if args.predictions is not None:
        _refuse(args, _OF_MODEL, "--predictions")
        _answers(args)
    elif args.model is not None:
        _refuse(args, _OF_ANSWERS, "--model")
        _mistakes(args)
    else:
        raise ValueError(
            "Give --predictions, a file of answers, or --model, which is to classify; see --help."
        )


def _refuse(args: argparse.Namespace, names: tuple[str, ...], given: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is not for {given}; see --help.")


def _answers(args: argparse.Namespace) -> None:
    output = args.output or Path("predictions.html")
    of_images.check_output(output)
    if args.metric is None:
        raise ValueError("--metric is missing: name what the answers are scored by, such as vqa.")
    scored = open_scored(args.metric, args.input, args.predictions)
    title = f"{args.predictions}: {args.input}, {args.metric}"
    page = answers.make_page(scored, title, args.limit or 1000, args.size or 320)
    write_whole(output, page.html)
    print(
        f"Wrote {output}: {page.shown:,} of {len(scored.texts):,} questions, "
        f"{len(page.html) / 1e6:.1f} MB."
    )


def _mistakes(args: argparse.Namespace) -> None:
    args.output = args.output or Path("predictions.png")
    names = args.class_names and tables.class_names(args.class_names)
    source, model = _source_and_model(args)
    found = predictions.predict(model, source, names, args.template or ())
    top = args.top or 12
    table = Table(title=f"{found.accuracy:.1%} of {found.images:,} images are right")
    for column in ("said", "probability", "is", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    for one in found.mistakes[:top]:
        said, true = f"{one.probability:.3f}", f"{one.true_probability:.3f}"
        table.add_row(one.predicted, said, one.true, true)
    console = Console()
    console.print(table)
    title = f"{args.model}: {args.input}"
    write_whole(args.output, predictions.draw(found, source, title, top))
    console.print(f"Wrote {args.output}.")
