"""Shows what a model makes of an image: python -m big_vlp.show words --model DIR --image FILE

`words` prints the most probable classes of a classifier, for CatLIP the synsets it would expect in
a caption, as a table, and draws them beside the image.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from absl import logging
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from big_vlp.checkpoint import CheckpointError
from big_vlp.model_dir import open_model
from input_pipeline import unicode
from input_pipeline.images import decode, eval_image
from input_pipeline.paths import path_argument


def words(model_dir: str, images: list[Path], top: int, weights: str | None) -> list[list[tuple]]:
    """The most probable classes of each image.

    Returns:
      For each image (name, probability) pairs, the most probable first.

    Raises:
      CheckpointError: the directory holds no classifier.
      OSError, ValueError: an image cannot be read.
    """
    stored = open_model(model_dir, weights)
    if stored.labels is None:
        raise CheckpointError(f"{model_dir} has no labels.json: its model is no classifier.")
    predict = stored.make_method("catlip", "transfer").predict_fns()["probabilities"]
    preprocess = stored.preprocess
    pixels = []
    for path in images:
        try:
            pixels.append(eval_image(path.read_bytes(), preprocess))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    probabilities = np.asarray(jax.jit(predict)(stored.load(), {"image": np.stack(pixels)}))
    names = stored.labels.names
    return [
        [(names[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top]]
        for row in probabilities
    ]


def draw(path: Path, images: list[Path], found: list[list[tuple]]) -> None:
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
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m big_vlp.show", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("words", help="the most probable classes of images")
    command.add_argument("--model", required=True, metavar="DIR", help="of a run or converted")
    command.add_argument("--image", required=True, nargs="+", type=Path, metavar="FILE")
    command.add_argument("--top", type=int, default=10, metavar="K")
    command.add_argument("--weights", choices=("model", "averaged"), help="default: the average")
    command.add_argument("--output", type=path_argument, default=Path("words.png"), metavar="PNG")
    args = parser.parse_args(argv)
    unicode.escape_output()
    logging.set_verbosity(logging.ERROR)  # of the checkpoint library
    try:
        if args.top < 1:
            raise ValueError(f"--top {args.top}: give 1 or more.")
        if not args.output.parent.is_dir():
            raise ValueError(f"--output {args.output}: there is no such directory.")
        found = words(args.model, args.image, args.top, args.weights)
        draw(args.output, args.image, found)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    for image, classes in zip(args.image, found):
        table = Table(title=str(image), title_justify="left")
        table.add_column("class")
        table.add_column("probability", justify="right")
        for name, probability in classes:
            table.add_row(name, f"{probability:.3f}")
        console.print(table)
    console.print(f"Wrote {args.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
