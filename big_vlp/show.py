"""Shows what a model reads, and what it makes of it.

    python -m big_vlp.show batch --config configs/demo.py --step 3 --output batch.png
    python -m big_vlp.show words --model runs/catlip --image some.jpg --output words.png

`batch` draws a training batch as the model sees it: every view after augmentation, with the texts
or labels below. `words` prints the most probable classes of a classifier, for CatLIP the synsets it
would expect in a caption, as a table, and draws them beside the image. `python -m big_vlp.show
batch --help` and `words --help` tell the arguments of each.
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
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.run import contact_sheet
from big_vlp.run.compile_cache import open_compile_cache
from input_pipeline import command_line
from input_pipeline.checks import errors
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.command_line import Parser, path_argument
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
    return command_line.run(_words, parser.parse_args(argv))


def _words(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise ValueError(f"--top {args.top}: give 1 or more.")
    if not (is_in_bucket(args.output) or args.output.parent.is_dir()):
        raise ValueError(f"--output {args.output}: there is no such directory.")
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


if __name__ == "__main__":
    sys.exit(main())
