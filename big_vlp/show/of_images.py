"""Commands about single images: `words`, `segmentation`, `attention`."""

import argparse
from pathlib import Path

from etils import epath
from rich.console import Console
from rich.table import Table

import big_vlp
from big_vlp import command
from big_vlp.api.model import Model
from big_vlp.pictures import attention, label_maps
from big_vlp.run.compile_cache import open_compile_cache
from evaluators.datasets import tables
from input_pipeline.command_line import path_argument
from input_pipeline.figures import new_figure, png
from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.files.whole import write_whole
from input_pipeline.images.crops import decode, eval_image
from input_pipeline.text.spans import word_spans
from input_pipeline.text.tokenizers import make_tokenizer


def add(commands) -> None:
    words = commands.add_parser(
        "words",
        help="the most probable classes of images",
        description="Prints the most probable classes of images, and draws them.\n\n"
        "    python -m big_vlp.show words --model runs/catlip --image some.jpg",
    )
    _add_files(words, "words.png")
    words.add_argument("--top", type=int, default=10, metavar="K", help="so many classes of each")
    words.set_defaults(run=_words)
    segmentation = commands.add_parser(
        "segmentation",
        help="the classes of pixels",
        description="Draws images, the classes of their pixels, and a legend.\n\n"
        "    python -m big_vlp.show segmentation --model runs/cosmos --image some.jpg "
        "--classes sky,sea,boat",
    )
    _add_files(segmentation, "segmentation.png")
    segmentation.add_argument(
        "--classes",
        metavar="NAME,...",
        help="of a model of images and texts: the classes, or the name of a published list of them "
        f"({', '.join(tables.SEGMENTATION)})",
    )
    segmentation.set_defaults(run=_segmentation)
    attended = commands.add_parser(
        "attention",
        help="what a COSMOS attends to",
        description="Draws what a COSMOS attends to in images, given their captions, and in "
        "captions, given their images.\n\n"
        '    python -m big_vlp.show attention --model runs/cosmos --image some.jpg --text "a boat"',
    )
    _add_files(attended, "attention.png")
    attended.add_argument(
        "--text", required=True, nargs="+", metavar="TEXT", help="a caption for each image"
    )
    attended.set_defaults(run=_attention)


def _add_files(parser: argparse.ArgumentParser, output: str) -> None:
    """What the commands that ask a model about images have in common."""
    command.add_model(parser)
    parser.add_argument(
        "--image",
        required=True,
        action="extend",
        nargs="+",
        type=path_argument,
        metavar="FILE",
        help="images to look at; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        default=Path(output),
        metavar="PNG",
        help="the picture to write",
    )


def check_output(path: Path | epath.Path) -> None:
    if not (is_in_bucket(path) or path.parent.is_dir()):
        raise ValueError(f"--output {path}: there is no such directory.")
    if path.is_dir():
        raise ValueError(f"--output {path} is a directory; name a file.")


def _load(args: argparse.Namespace) -> Model:
    check_output(args.output)
    open_compile_cache()
    return big_vlp.load(args.model, args.weights, batch_size=min(32, len(args.image)))


def draw(
    path: Path | epath.Path, images: list[Path | epath.Path], found: list[list[tuple]]
) -> None:
    """A picture with a row per image: the image, and a bar for each class."""
    figure = new_figure(8, 0.6 + 2.8 * len(images))
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
    write_whole(path, png(figure))


def _words(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise ValueError(f"--top {args.top}: give 1 or more.")
    found = _load(args).classify(args.image, args.top)
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


def _segmentation(args: argparse.Namespace) -> None:
    model = _load(args)
    if "segment" in model.can:
        if args.classes is not None:
            raise ValueError(f"--classes: the classes of {args.model} are those it was trained on.")
        labels, names = model.segment(args.image), model.class_names
    else:
        if not args.classes:
            raise ValueError("--classes is missing: name what there may be in the images.")
        classes = [[name.strip()] for name in args.classes.split(",")]
        if args.classes in tables.SEGMENTATION:
            classes = tables.segmentation_classes(args.classes)
        labels = model.segment_named(args.image, classes, tables.templates("imagenet1k"))
        names = [names[0] for names in classes]
    if names is None:
        names = [f"class {number}" for number in range(1 + max(x.max() for x in labels))]
    rows = [
        label_maps.Segmented(image.name, decode(image.read_bytes()), found)
        for image, found in zip(args.image, labels)
    ]
    label_maps.draw(args.output, rows, names)
    print(f"Wrote {args.output}.")


def _attention(args: argparse.Namespace) -> None:
    if len(args.text) != len(args.image):
        raise ValueError(
            f"--text has {len(args.text)} captions for {len(args.image)} images: give each its own."
        )
    model = _load(args)
    patches, tokens = model.attention_maps(args.image, args.text)
    tokenizer = make_tokenizer(model.preprocess.tokenizer)
    length = model.preprocess.context_length
    rows = [
        attention.Attended(
            image.name,
            eval_image(image.read_bytes(), model.preprocess),
            of_patches,
            [
                (word.text, float(of_tokens[word.start : word.stop].max()))
                for word in word_spans(tokenizer, text, length)
            ],
        )
        for image, text, of_patches, of_tokens in zip(args.image, args.text, patches, tokens)
    ]
    attention.draw(args.output, rows)
    print(f"Wrote {args.output}.")
