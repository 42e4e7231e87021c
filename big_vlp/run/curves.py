"""`curves.png`: the log of a run as a drawing."""

import os
from collections.abc import Mapping

import jax
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from big_vlp.run.log import TRAIN, read_log
from big_vlp.run.tables import metric_of
from input_pipeline.figures import new_figure, png
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_whole

CURVES_FILE = "curves.png"


def plot_curves(workdir: str | os.PathLike) -> os.PathLike:
    """Draws the log: the training losses, and a panel per family of each evaluator's metrics.

    Chance and baselines (`REFERENCES`) are dotted, in their metric's colour. Steps whose loss was
    not finite are marked at the foot of the panel.

    Returns:
      The path of `workdir/curves.png`, written by process 0 only.

    Raises:
      FileNotFoundError: there is no log in `workdir`.
      ValueError: the log has nothing to draw.
    """
    path = storage_path(workdir) / CURVES_FILE
    if jax.process_index() != 0:
        return path
    panels = _panels(read_log(workdir))
    if not panels:
        raise ValueError(f"The log in {workdir} has no losses and no evaluations yet.")
    columns = min(3, len(panels))
    grid_rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.6 * grid_rows)
    for i, (title, curves) in enumerate(panels.items()):
        _draw(figure.add_subplot(grid_rows, columns, i + 1), title, curves)
    write_whole(path, png(figure))
    return path


def _panels(lines) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """{title: {curve: (steps, values)}}, the training losses first."""
    points: dict[str, dict[str, list]] = {}
    for line in lines:
        for name, value in line["values"].items():
            family = _family(line["split"], name)
            if family is not None:
                curve = points.setdefault(family, {}).setdefault(name, [])
                curve.append((line["step"], value))
    splits = list(dict.fromkeys([TRAIN, *(line["split"] for line in lines)]))
    order = sorted(points, key=lambda f: (splits.index(f.rsplit(": ", 1)[0]), f.endswith(": rank")))
    return {
        title: {name: tuple(np.array(xy, float).T) for name, xy in points[title].items()}
        for title in order
    }


def _family(split: str, name: str) -> str | None:
    """The panel a metric belongs to: R@1, R@5, R@10 share one, ranks share one; None: not drawn."""
    if split == TRAIN:
        return f"{TRAIN}: losses" if "loss" in name else None
    name = metric_of(name)
    if name.startswith("num_"):
        return None  # it describes the data
    if name.endswith("_rank"):
        return f"{split}: rank"
    return f"{split}: {name.split('@')[0]}@k" if "@" in name else f"{split}: accuracy"


def _draw(axes, title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    colours = {}
    for name, (steps, values) in curves.items():
        metric = metric_of(name)
        colour = colours.setdefault(metric, f"C{len(colours) % 10}")
        finite = np.isfinite(values)
        if not finite.all():
            at_foot = axes.get_xaxis_transform()
            bad = steps[~finite]
            axes.plot(bad, np.full(len(bad), 0.02), "x", color=colour, transform=at_foot)
        values = np.where(finite, values, np.nan)
        if name != metric:
            axes.plot(steps, values, ":", color=colour, linewidth=1)
        elif len(steps) > 200:
            axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.35)
            axes.plot(*_smoothed(steps, values), color=colour, label=_label(name))
        else:
            few = "o" if len(steps) < 30 else ""
            axes.plot(steps, values, color=colour, marker=few, ms=3, label=_label(name))
    if title.endswith(": rank"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif not title.startswith(f"{TRAIN}:"):
        axes.set_ylim(-0.02, 1.02)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _label(name: str) -> str:
    """The curve's name: R@5 for image_to_text_R@5, as the panel's title says the rest."""
    return name.rsplit("_", 1)[-1] if "@" in name else name


def _smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over 100 stretches of the curve, without the values that are not finite."""
    finite = np.isfinite(values)
    stretches = [s for s in np.array_split(np.arange(len(steps)), 100) if finite[s].any()]
    return (
        np.array([steps[s].mean() for s in stretches]),
        np.array([np.nanmean(values[s]) for s in stretches]),
    )
