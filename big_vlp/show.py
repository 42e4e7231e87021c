"""Shows what a model reads, and what it makes of it.

    python -m big_vlp.show batch --config configs/demo.py --step 3 --output batch.png
    python -m big_vlp.show words --model runs/catlip --image some.jpg --output words.png
    python -m big_vlp.show retrieval --model runs/clip --input data/coco_val2017 --caption-field txt
    python -m big_vlp.show predictions --model runs/clip --input folders:path=imagenet/val

`batch` draws a training batch as the model sees it: every view after augmentation, with the texts
or labels below. `words` prints the most probable classes of a classifier, for CatLIP the synsets it
would expect in a caption, as a table, and draws them beside the image. `retrieval` draws the images
that a model finds for texts, and the texts for images; `predictions` the mistakes it is surest of.
`python -m big_vlp.show COMMAND --help` tells the arguments of each.
"""

import argparse
import io
import sys
from pathlib import Path

import jax
from absl import flags, logging
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import big_vlp
from big_vlp import command
from big_vlp.api import draw_predictions, draw_retrieval
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.run import contact_sheet
from big_vlp.run.compile_cache import open_compile_cache
from evaluators.datasets import tables
from input_pipeline import command_line
from input_pipeline.checks import errors
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.checks.ranges import whole
from input_pipeline.command_line import SOURCE, SOURCE_HELP, Parser, open_source, path_argument
from input_pipeline.files.buckets import is_in_bucket, storage_path
from input_pipeline.files.whole import write_whole
from input_pipeline.images.crops import decode


def draw(
    path: Path | epath.Path, images: list[Path | epath.Path], found: list[list[tuple]]
) -> None:
    """A picture with a row per image: the image, and a bar for each class."""
    figure = Figure(figsize=(8, 0.6 + 2.8 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 1.4))
    for (left, right), image, classes in zip(axes, images, found):
        left.imshow(decode(image.read_bytes()))
        left.set_axis_off()
        left.set_title(image.name, fontsize=9)
        names, probabilities = zip(*reversed(classes))
        # At numbered places: two classes may have one name.
        bars = right.barh(range(len(names)), probabilities, tick_label=names, color="#4c72b0")
        right.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        right.set_xlim(0, 1.12 * max(probabilities))
        right.tick_params(labelsize=8)
        right.spines[["top", "right"]].set_visible(False)
    axes[-1][1].set_xlabel("probability", fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_whole(path, picture.getvalue())


def draw_batch(config, step: int, output: str | Path) -> Path | epath.Path:
    """A contact sheet of batch `step` of a config; returns where it lies.

    Raises:
      PathError, ConfigError, BrokenRecordError: see `Experiment`.
    """
    output = storage_path(output)
    experiment = Experiment.from_config(config)
    if step >= experiment.total_steps:
        raise ConfigError(f"--step={step}: the run ends with step {experiment.total_steps - 1}.")
    loader, method = experiment.make_loader(), experiment.make_method()
    rows = loader.first_rows(step, contact_sheet.MAX_EXAMPLES)
    _, key = jax.random.split(jax.random.key(experiment.seed))
    image_size, batch_size, _ = loader.plan(step)
    views = loader.views[image_size]
    contact_sheet.write_contact_sheet(output, method, views, rows, key, step, batch_size)
    return output


def _batch(_) -> None:
    """Draws a training batch as the model sees it.

        python -m big_vlp.show batch --config configs/demo.py --step 3 --output batch.png

    It has every view of some examples, with their texts or labels below.
    """
    given = flags.FLAGS
    open_compile_cache()
    try:
        output = draw_batch(given.config, given.step, given.output)
    except BigVlpError as error:
        errors.stop(error)
    print(f"Wrote {output}: batch {given.step} of {given['config'].parser.source}.")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    logging.set_verbosity(logging.ERROR)  # of the libraries
    if argv[:1] == ["batch"]:
        command.define_config()
        flags.DEFINE_string("output", "contact_sheet.png", "the picture to write")
        flags.DEFINE_integer("step", 0, "the step whose batch to draw", lower_bound=0)
        command.run(_batch, ["python -m big_vlp.show batch", *argv[1:]])
    parser = Parser(prog="python -m big_vlp.show", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("batch", help="a training batch")
    words = commands.add_parser(
        "words",
        help="the most probable classes of images",
        description="Prints the most probable classes of images, and draws them.\n\n"
        "    python -m big_vlp.show words --model runs/catlip --image some.jpg",
    )
    command.add_model(words)
    words.add_argument(
        "--image",
        required=True,
        action="extend",
        nargs="+",
        type=path_argument,
        metavar="FILE",
        help="images to look at; may be repeated",
    )
    words.add_argument("--top", type=int, default=10, metavar="K", help="so many classes of each")
    words.add_argument(
        "--output",
        type=path_argument,
        default=Path("words.png"),
        metavar="PNG",
        help="the picture to write",
    )
    words.set_defaults(show=_words)
    _add_retrieval(commands)
    _add_predictions(commands)
    args = parser.parse_args(argv)
    return command_line.run(args.show, args)


def _words(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise ValueError(f"--top {args.top}: give 1 or more.")
    _check_output(args.output)
    open_compile_cache()
    model = big_vlp.load(args.model, args.weights, batch_size=min(32, len(args.image)))
    found = model.classify(args.image, args.top)
    draw(args.output, args.image, found)
    console = Console()
    for image, classes in zip(args.image, found):
        table = Table(title=str(image), title_justify="left")
        table.add_column("class")
        table.add_column("probability", justify="right")
        for name, probability in classes:
            table.add_row(name, f"{probability:.3f}")
        console.print(table)
    console.print(f"Wrote {args.output}.")


def _check_output(path: Path | epath.Path) -> None:
    if not (is_in_bucket(path) or path.parent.is_dir()):
        raise ValueError(f"--output {path}: there is no such directory.")


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
    _check_output(args.output)
    _, _, source = open_source(args.input)
    if not len(source):
        raise ValueError(f"--input {args.input} has no records.")
    open_compile_cache()
    return source, big_vlp.load(args.model, args.weights)


def _add_retrieval(commands) -> None:
    retrieval = commands.add_parser(
        "retrieval",
        help="the images that a model finds for texts, and the texts for images",
        description="Draws the nearest images of texts and the nearest texts of images; the right "
        "ones are ticked.\n\n"
        "    python -m big_vlp.show retrieval --model runs/clip --input data/coco_val2017 "
        "--caption-field txt",
    )
    _add_of_source(retrieval, "retrieval.png")
    retrieval.add_argument(
        "--caption-field", required=True, metavar="FIELD", help="whose captions are searched"
    )
    retrieval.add_argument(
        "--text",
        action="extend",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="texts to search by; by default captions of the images that are asked",
    )
    retrieval.add_argument(
        "--queries", type=whole(1), default=5, metavar="N", help="so many images are asked"
    )
    retrieval.add_argument(
        "--top", type=whole(1), default=5, metavar="K", help="so many answers to each"
    )
    retrieval.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="another one asks other images"
    )
    retrieval.set_defaults(show=_retrieval)


def _retrieval(args: argparse.Namespace) -> None:
    source, model = _source_and_model(args)
    found = draw_retrieval.search(
        model, source, args.caption_field, args.text, args.queries, args.top, args.seed
    )
    title = f"{args.model}: {len(source):,} images of {args.input}, {args.caption_field}"
    write_whole(args.output, draw_retrieval.draw(found, source, title))
    print(f"Wrote {args.output}.")


def _add_predictions(commands) -> None:
    predictions = commands.add_parser(
        "predictions",
        help="the mistakes in classifying that a model is surest of",
        description="Classifies the images of a source, zero-shot or by a model's head, and draws "
        "the mistakes that the model is surest of.\n\n"
        "    python -m big_vlp.show predictions --model runs/clip --input folders:path=pets "
        "--template 'a photo of a {}.'",
    )
    _add_of_source(predictions, "predictions.png")
    predictions.add_argument(
        "--class-names",
        metavar="NAME",
        help="a published list of what the classes are called, such as imagenet1k; by default the "
        "source's own",
    )
    predictions.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt with {} in the place of the class; may be repeated, for their mean",
    )
    predictions.add_argument(
        "--top", type=whole(1), default=12, metavar="K", help="so many mistakes"
    )
    predictions.set_defaults(show=_predictions)


def _predictions(args: argparse.Namespace) -> None:
    names = args.class_names and tables.class_names(args.class_names)
    source, model = _source_and_model(args)
    found = draw_predictions.predict(model, source, names, args.template)
    table = Table(title=f"{found.accuracy:.1%} of {found.images:,} images are right")
    for column in ("said", "probability", "is", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    for one in found.mistakes[: args.top]:
        said, true = f"{one.probability:.3f}", f"{one.true_probability:.3f}"
        table.add_row(one.predicted, said, one.true, true)
    console = Console()
    console.print(table)
    title = f"{args.model}: {args.input}"
    write_whole(args.output, draw_predictions.draw(found, source, title, args.top))
    console.print(f"Wrote {args.output}.")


if __name__ == "__main__":
    sys.exit(main())
