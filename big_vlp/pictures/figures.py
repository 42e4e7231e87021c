"""What the pictures of `big_vlp.show` have in common: figures, images in frames, PNGs."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from input_pipeline import figures
from input_pipeline.files.whole import write_whole
from input_pipeline.images.crops import decode

# Okabe and Ito's colours, which the colour-blind tell apart.
RIGHT, WRONG, PLAIN = "#009e73", "#d55e00", "#999999"
ROW_INCHES = 3.0


def titled(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches with a title above all; its lines are kept, and no longer
    than the figure is wide."""
    figure = figures.new_figure(width, height)
    wrapped = [lines(line, int(11 * width), 2) for line in title.splitlines()]
    figure.suptitle("\n".join(wrapped), fontsize=11)
    return figure


def page(rows: int, widths: Sequence[float]):
    """(figure, axes [rows, len(widths)]) with columns as wide as `widths` rows are high."""
    figure = figures.new_figure(sum(widths) * ROW_INCHES, rows * (ROW_INCHES + 0.3))
    axes = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_anchor("N")
    return figure, axes


def show_pixels(axes: Axes, pixels, title: str = "") -> None:
    """Draws u8[H, W, 3] without a frame."""
    axes.imshow(pixels)
    axes.set_title(title, fontsize=10, loc="left")


def show_image(axes: Axes, image: bytes, colour: str) -> None:
    """Draws an encoded image in a frame; a grey one is thin."""
    axes.imshow(decode(image))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1 if colour == PLAIN else 3)


def lines(text: str, width: int, most: int) -> str:
    """The text in lines of `width` characters, `most` of them at most."""
    return textwrap.fill(text, width, max_lines=most, placeholder=" ...")


def write(figure: Figure, path) -> None:
    """Writes the PNG, all or nothing."""
    write_whole(path, figures.png(figure))
