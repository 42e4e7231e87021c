"""The last table of an evaluation as a picture: a bar for each number, chance, and the paper's."""

import math
from collections.abc import Sequence

from evaluators.datasets.report import Row
from input_pipeline.figures import new_figure, png

_BAR = 0.16  # inches
_COLOURS = ("tab:blue", "tab:orange")


def chart(rows: Sequence[Row]) -> bytes | None:
    """A PNG of the rows whose numbers are shares, from 0 to 1; None where there is none.

    A bar for each of the weights, a black line where chance is, a diamond where the paper is.
    """
    shares = [row for row in rows if any(map(_is_share, row.values.values()))]
    if not shares:
        return None
    weights = list(dict.fromkeys(name for row in shares for name in row.values))
    figure = new_figure(7, 1.2 + _BAR * len(shares) * (len(weights) + 0.5))
    axes = figure.add_subplot()
    height = 1 / (len(weights) + 0.5)
    for number, name in enumerate(weights):
        bars = [
            (place + (number - (len(weights) - 1) / 2) * height, row.values[name])
            for place, row in enumerate(shares)
            if _is_share(row.values.get(name))
        ]
        places, values = zip(*bars) if bars else ((), ())
        drawn = axes.barh(places, values, 0.9 * height, color=_COLOURS[number], label=name)
        axes.bar_label(drawn, [f"{value:.3f}" for value in values], padding=3, fontsize=7)
    for what, label, style in (
        ("chance", "chance", {"marker": "|", "color": "black", "s": 90}),
        ("paper", "paper", {"marker": "D", "facecolor": "white", "edgecolor": "black", "s": 22}),
    ):
        points = [
            (getattr(row, what), place)
            for place, row in enumerate(shares)
            if _is_share(getattr(row, what))
        ]
        if points:
            axes.scatter(*zip(*points), label=label, zorder=3, **style)
    axes.set_yticks(range(len(shares)), [f"{row.name}, {row.metric}" for row in shares], fontsize=8)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 1.08)  # room for the numbers
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return png(figure)


def _is_share(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and 0 <= value <= 1
