"""A page of rows of pictures, and how it becomes a PNG."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from input_pipeline.files.whole import write_whole

ROW_INCHES = 3.0
DPI = 110


def page(rows: int, widths: Sequence[float]):
    """(figure, axes [rows, len(widths)]) with columns as wide as `widths` rows are high."""
    size = sum(widths) * ROW_INCHES, rows * (ROW_INCHES + 0.3)
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_anchor("N")
    return figure, axes


def show_image(axis, pixels, title: str = "") -> None:
    """Draws u8[H, W, 3]."""
    axis.imshow(pixels)
    axis.set_title(title, fontsize=10, loc="left", parse_math=False)


def write(figure, path) -> None:
    """Writes the PNG, all or nothing."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DPI, format="png")
    write_whole(path, picture.getvalue())
