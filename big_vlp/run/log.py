"""The record of a run: `metrics.jsonl`, and boards of the same numbers, such as TensorBoard's.

Only process 0 writes.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from big_vlp.run.boards import Board
from big_vlp.run.progress import Dispensable
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.buckets import make_directory, storage_path
from input_pipeline.files.lines import Lines

LOG_FILE = "metrics.jsonl"


TRAIN = "train"


class LogError(BigVlpError, ValueError):
    """The metric log cannot be read or written; the message says what to do."""


class MetricLog:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard in `workdir/tensorboard`.

    A line is `{"step": int, "time": seconds since 1970, "split": str, "values": {name: number}}`;
    `split` is "train" or an evaluator's name, and `step` is the number of steps done before: the
    metrics of the first step and an evaluation of the initial model both have step 0. JSON has no
    NaN: non-finite values are the strings "NaN", "Infinity" and "-Infinity", which `float()` reads.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        start_step: int = 0,
        keep: Collection[str] = (),
        say: Callable[[str], None] = lambda text: None,
        tracker=None,
    ):
        """Opens the log of a run that starts, or goes on, at `start_step`.

        Lines of `start_step` and later are dropped: those steps are about to be made again, and no
        step may appear twice. So is a last line that a kill has cut short.

        Args:
          keep: splits whose lines of `start_step` itself stay: evaluations of the very weights
            that the run goes on from.
          say: is told when TensorBoard or the tracker fails; the log goes on.
          tracker: a `telemetry.tracker.Tracker`, which gets the same numbers.

        Attributes:
          found: the lines that were there, those that are dropped too; none but on process 0.

        Raises:
          PathError: `workdir` is no path of this machine, nor in a bucket.
          LogError: the log holds a broken line before its end, or cannot be written.
        """
        self._lines, self.found = None, []
        if jax.process_index() != 0:
            return
        workdir = storage_path(workdir)
        self._path = workdir / LOG_FILE
        with self._explained():
            make_directory(workdir)
            lines = Lines(self._path)
            kept = self._drop_from(lines, start_step, keep) if lines.exists() else []
            lines.append("")
        self._boards = [(Board(workdir, start_step), Dispensable("TensorBoard's files", say))]
        if tracker is not None:
            self._boards.append((tracker, Dispensable("Weights & Biases", say, Exception)))
        self._lines = lines
        for line in kept:
            if line["step"] == start_step:  # TensorBoard drops them
                values = {name: float(value) for name, value in line["values"].items()}
                with self._boards[0][1]:
                    self._boards[0][0].write(start_step, line["split"], values, line["time"])

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Logs numbers (or arrays of one) under the split; stored when this returns.

        Raises:
          LogError: it cannot be written.
        """
        if self._lines is None:
            return
        values = {name: float(value) for name, value in values.items()}
        now = time.time()
        encoded = {name: to_json(value) for name, value in values.items()}
        line = {"step": int(step), "time": round(now, 3), "split": split, "values": encoded}
        with self._explained():
            self._lines.append(json.dumps(line, allow_nan=False) + "\n")
        for board, dispensable in self._boards:
            with dispensable:
                board.write(step, split, values, now)

    def close(self) -> None:
        if self._lines is not None:
            for board, dispensable in self._boards:
                with dispensable:
                    board.close()

    def _drop_from(self, lines: Lines, start_step: int, keep: Collection[str]) -> list[dict]:
        """Rewrites the log where a line has to go; gives those that stay."""
        text, kept = lines.text(), []
        for line, fields in _complete_lines(self._path, text):
            step, split = fields["step"], fields["split"]
            self.found.append(fields)
            if step < start_step or (step == start_step and split in keep):
                kept.append((line, fields))
        if (whole := "".join(line for line, _ in kept)) != text:
            lines.replace(whole)
        return [fields for _, fields in kept]

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
    stored = Lines(storage_path(workdir) / LOG_FILE)
    if not stored.exists():
        raise FileNotFoundError(f"No {LOG_FILE} in {workdir}; give the workdir of a run.")
    lines = [fields for _, fields in _complete_lines(stored.path, stored.text())]
    for line in lines:
        line["values"] = {name: float(value) for name, value in line["values"].items()}
    return lines


def _complete_lines(path, text: str) -> list[tuple[str, dict]]:
    """The log's lines and what they say, without a last one that was cut short."""
    lines = text.splitlines(keepends=True)
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
