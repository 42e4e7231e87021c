"""What a run says about itself: the metric log, a live line, the parameter table, the curves.

`metrics.jsonl` is the record of a run; TensorBoard files, the live line and `curves.png` show the
same numbers. Only process 0 writes.
"""

import contextlib
import datetime
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from tensorboardX import SummaryWriter

from big_vlp import sharding
from input_pipeline.paths import local_path
from input_pipeline.shards import write_whole

LOG_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
TRAIN = "train"
# Endings of metrics that say what a model would get which knows nothing, knows only frequencies,
# sees no image, or sees a wrong one.
REFERENCES = ("chance", "baseline", "blind", "shuffled")


class LogError(ValueError):
    """The metric log cannot be read or written; the message says what to do."""


class MetricLog:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard in `workdir/tensorboard`.

    A line is `{"step": int, "time": seconds since 1970, "split": str, "values": {name: number}}`;
    `split` is "train" or an evaluator's name, and `step` is the number of steps done before: the
    metrics of the first step and an evaluation of the initial model both have step 0. JSON has no
    NaN: non-finite values are the strings "NaN", "Infinity" and "-Infinity", which `float()` reads.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0, keep: Collection[str] = ()):
        """Opens the log of a run that starts, or goes on, at `start_step`.

        Lines of `start_step` and later are dropped: those steps are about to be made again, and no
        step may appear twice. So is a last line that a kill has cut short.

        Args:
          keep: splits whose lines of `start_step` itself stay: evaluations of the very weights
            that the run goes on from.

        Raises:
          PathError: `workdir` is no path of this machine.
          LogError: the log holds a broken line before its end, or cannot be written.
        """
        self._file = None
        if jax.process_index() != 0:
            return
        workdir = local_path(workdir)
        self._path = workdir / LOG_FILE
        with self._explained():
            workdir.mkdir(parents=True, exist_ok=True)
            kept = self._drop_from(start_step, keep) if self._path.exists() else []
            self._file = self._path.open("a")
            self._tensorboard = SummaryWriter(
                str(workdir / "tensorboard"),
                purge_step=start_step,
                filename_suffix=f".from_step_{start_step}",  # two files of one second must differ
            )
            for line in kept:
                if line["step"] == start_step:  # TensorBoard drops them
                    values = {name: float(value) for name, value in line["values"].items()}
                    self._to_tensorboard(start_step, line["split"], values, line["time"])

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Logs numbers (or arrays of one) under the split; on disk when this returns.

        Raises:
          LogError: it cannot be written.
        """
        if self._file is None:
            return
        values = {name: float(value) for name, value in values.items()}
        now = time.time()
        encoded = {name: to_json(value) for name, value in values.items()}
        line = {"step": int(step), "time": round(now, 3), "split": split, "values": encoded}
        with self._explained():
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            self._to_tensorboard(step, split, values, now)

    def close(self) -> None:
        if self._file is not None:
            with self._explained():
                self._file.close()
                self._tensorboard.close()

    def _drop_from(self, start_step: int, keep: Collection[str]) -> list[dict]:
        """Rewrites the log where a line has to go; gives those that stay."""
        text, kept = self._path.read_text("utf-8", "replace"), []
        for line, fields in _complete_lines(self._path):
            step, split = fields["step"], fields["split"]
            if step < start_step or (step == start_step and split in keep):
                kept.append((line, fields))
        if (whole := "".join(line for line, _ in kept)) != text:
            write_whole(self._path, whole.encode())  # a kill leaves the old log or the new one
        return [fields for _, fields in kept]

    def _to_tensorboard(self, step: int, split: str, values: Mapping[str, float], now: float):
        for name, value in values.items():
            if math.isfinite(value):
                # TensorBoard allows no "@" in a name.
                tag = f"{split}/{name}".replace("@", "_at_")
                self._tensorboard.add_scalar(tag, value, step, walltime=now)

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except OSError as error:
            raise LogError(
                f"{self._path} cannot be written ({error}). Make room, or correct --workdir; then "
                "run the same command again."
            ) from error


def read_log(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's log in order, with all values as floats.

    Raises:
      FileNotFoundError: there is no log in `workdir`.
      LogError: a broken line before the last one.
    """
    path = pathlib.Path(workdir) / LOG_FILE
    if not path.exists():
        raise FileNotFoundError(f"No {LOG_FILE} in {workdir}; give the workdir of a run.")
    lines = [fields for _, fields in _complete_lines(path)]
    for line in lines:
        line["values"] = {name: float(value) for name, value in line["values"].items()}
    return lines


class LiveLine:
    """Progress on the terminal: one line that refreshes; a new line each time where there is none.

    Only process 0 prints.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, clock=time.monotonic):
        self._total = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._silent = jax.process_index() != 0
        self._refresh = self._stream.isatty()
        self._clock = clock
        self._first = None  # (step, time) of the first update: before it lies compilation
        self._open = False

    def update(self, step: int, loss: float, examples_per_s: float, input_wait: float) -> None:
        """Shows where the run is.

        Args:
          step: steps done so far.
          examples_per_s: of all hosts together.
          input_wait: share of the time, 0..1, that the loop has waited for its next batch.
        """
        now = self._clock()
        self._first = self._first or (step, now)
        first_step, first_time = self._first
        left = "?"
        if step > first_step:
            seconds = (now - first_time) / (step - first_step) * (self._total - step)
            left = str(datetime.timedelta(seconds=round(seconds)))
        parts = (
            f"step {step:{len(str(self._total))}d}/{self._total}",
            f"loss {loss:.4f}",
            f"{examples_per_s:,.0f} examples/s",
            f"input wait {input_wait:.0%}",
            f"{left} left",
        )
        self._print(" | ".join(parts), refresh=self._refresh)

    def message(self, text: str) -> None:
        """Prints lines that stay, above the live line."""
        self._print(text, refresh=False)

    def close(self) -> None:
        """Ends the live line, so that what follows starts on a line of its own."""
        if self._open:
            self._print("", refresh=False)

    def _print(self, text: str, refresh: bool) -> None:
        if self._silent:
            return
        start = "\r\x1b[K" if self._open else ""  # back to the line's start, erase it
        if refresh:
            text = text[: shutil.get_terminal_size().columns - 1]
        elif self._open and not text:
            start = ""
        self._stream.write(start + text + ("" if refresh else "\n"))
        self._stream.flush()
        self._open = refresh


class Clock:
    """Examples per second and the share of time spent waiting for input, since the last reading."""

    def __init__(self):
        self.examples, self._waited, self._start = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self):
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def read(self) -> dict[str, float]:
        now = time.monotonic()
        elapsed = now - self._start
        rates = {
            "examples_per_s": self.examples / elapsed,
            "input_wait": self._waited / elapsed,
        }
        self.examples, self._waited, self._start = 0, 0.0, now
        return rates


def metric_table(values: Mapping[str, float]) -> str:
    """One line per metric, with what chance or a baseline gives where the evaluator says so."""
    lines = []
    for name, value in values.items():
        if _metric_of(name) == name:
            found = {r: values[f"{name}_{r}"] for r in REFERENCES if f"{name}_{r}" in values}
            beside = "".join(f"   ({r} {v:.4f})" for r, v in found.items())
            lines.append(f"  {name:28} {value:9.4f}{beside}")
    return "\n".join(lines)


def _metric_of(name: str) -> str:
    """The metric itself where the name is that of a reference value, such as "R@1_chance"."""
    for reference in REFERENCES:
        name = name.removesuffix(f"_{reference}")
    return name


def parameter_table(params, groups: Mapping[str, str]) -> str:
    """A text table of all parameters, section by section, with totals.

    Args:
      params: tree of jax.Array or jax.ShapeDtypeStruct; where they live is shown too.
      groups: path ("image/block/kernel") -> how the optimizer treats it, for example
        "trained, lr x1, wd x0" or "frozen".

    Raises:
      ValueError: paths of `params` and of `groups` differ.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if leaves.keys() != groups.keys():
        raise ValueError(
            f"Every parameter needs one group: {sorted(leaves.keys() - groups.keys())} have none, "
            f"{sorted(groups.keys() - leaves.keys())} are no parameters."
        )
    rows = {
        path: (
            path,
            "x".join(map(str, leaf.shape)) or "scalar",
            np.dtype(leaf.dtype).name,
            f"{math.prod(leaf.shape):,}",
            groups[path],
            sharding.split_of(leaf),
            f"{sharding.bytes_per_device(leaf):,}",
        )
        for path, leaf in leaves.items()
    }
    header = ("parameter", "shape", "dtype", "size", "group", "split", "bytes per device")
    widths = [max(map(len, column)) for column in zip(header, *rows.values())]
    left_aligned = (True, False, True, False, True, True, False)

    def text(row):
        cells = zip(row, widths, left_aligned)
        return "  ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in cells).rstrip()

    lines = [text(header)]
    sections = {}
    for path in rows:
        sections.setdefault(path.split("/")[0], []).append(path)
    for name, paths in sections.items():
        total = sum(math.prod(leaves[path].shape) for path in paths)
        lines.append("")
        if len(paths) > 1:
            lines.append(f"{name}: {len(paths)} arrays, {total:,} parameters")
        lines += [text(rows[path]) for path in paths]

    totals = {}
    for path, leaf in leaves.items():
        count, size = totals.get(groups[path], (0, 0))
        totals[groups[path]] = count + 1, size + math.prod(leaf.shape)
    everything = sum(size for _, size in totals.values())
    held = sum(map(sharding.bytes_per_device, leaves.values()))
    lines += [
        "",
        f"all: {len(leaves)} arrays, {everything:,} parameters, {held:,} bytes per device",
    ]
    for group, (count, size) in sorted(totals.items(), key=lambda item: -item[1][1]):
        lines.append(f"  {group}: {count} arrays, {size:,} parameters ({size / everything:.1%})")
    return "\n".join(lines)


def plot_curves(workdir: str | os.PathLike) -> pathlib.Path:
    """Draws the log: the training losses, and a panel per family of each evaluator's metrics.

    Chance and baselines (`REFERENCES`) are dotted, in their metric's colour. Steps whose loss was
    not finite are marked at the foot of the panel.

    Returns:
      The path of `workdir/curves.png`, written by process 0 only.

    Raises:
      FileNotFoundError: there is no log in `workdir`.
      ValueError: the log has nothing to draw.
    """
    path = pathlib.Path(workdir) / CURVES_FILE
    if jax.process_index() != 0:
        return path
    panels = _panels(read_log(workdir))
    if not panels:
        raise ValueError(f"The log in {workdir} has no losses and no evaluations yet.")
    columns = min(3, len(panels))
    grid_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * grid_rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, curves) in enumerate(panels.items()):
        _draw(figure.add_subplot(grid_rows, columns, i + 1), title, curves)
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=120)
    os.replace(part, path)
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
    name = _metric_of(name)
    if name.startswith("num_"):
        return None  # it describes the data
    if name.endswith("_rank"):
        return f"{split}: rank"
    return f"{split}: {name.split('@')[0]}@k" if "@" in name else f"{split}: accuracy"


def _draw(axes, title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    colours = {}
    for name, (steps, values) in curves.items():
        metric = _metric_of(name)
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


def _complete_lines(path: pathlib.Path) -> list[tuple[str, dict]]:
    """The log's lines and what they say, without a last one that was cut short."""
    lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            if not fields.keys() >= {"step", "time", "split", "values"}:
                raise ValueError
        except (ValueError, AttributeError):
            raise LogError(
                f"{path}, line {number} is no line of a log; repair or remove it."
            ) from None
        parsed.append((line, fields))
    return parsed


def to_json(value: float) -> float | str:
    """A number as JSON can hold it; `float()` reads it back."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
