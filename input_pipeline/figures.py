"""Figures that need no display, and their PNGs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib is imported where it is used: it takes a second, which commands that draw at their end
# do not want at their start; and its pyplot may want a display.


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that makes room for what is written beside its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG. All its text is plain: file names and captions may hold dollars, which
    are no formulas; so labels of logarithmic axes need a formatter without them."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    picture = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):  # of labels made while it is drawn
        figure.savefig(picture, dpi=dpi)
    return picture.getvalue()
