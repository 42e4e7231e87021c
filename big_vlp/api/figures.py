"""What the pictures of `big_vlp.show` have in common: figures, images in frames, PNGs."""

import io
import textwrap

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from input_pipeline.images.crops import decode

# Okabe and Ito's colours, which the colour-blind tell apart.
RIGHT, WRONG, PLAIN = "#009e73", "#d55e00", "#999999"
DPI = 110


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches with a title above all; its lines are kept, and no longer
    than the figure is wide."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    wrapped = [lines(line, int(11 * width), 2) for line in title.splitlines()]
    figure.suptitle("\n".join(wrapped), fontsize=11)
    return figure


def show_image(axes: Axes, image: bytes, colour: str) -> None:
    """Draws an encoded image in a frame; a grey one is thin."""
    axes.imshow(decode(image))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1 if colour == PLAIN else 3)


def lines(text: str, width: int, most: int) -> str:
    """The text in lines of `width` characters, `most` of them at most; dollars are no formulas."""
    return textwrap.fill(text, width, max_lines=most, placeholder=" ...").replace("$", r"\$")


def png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DPI)
    return picture.getvalue()
