"""The table that an evaluation ends with: tasks by weights, with chance and the paper's numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evaluators.datasets import tasks


class Evaluated(NamedTuple):
    """What one evaluator found, and what it is known by.

    Attributes:
      values: what it yielded, in its order.
      weights: which it was run on.
      task: of `datasets.tasks`, or None for an evaluator of the user's own, whose first metric is
        then its main one.
      paper: the published model whose numbers stand beside, or None.
    """

    values: Mapping[str, float]
    weights: str
    task: str | None = None
    paper: str | None = None


class Row(NamedTuple):
    """A line of the table; None is a number that there is not."""

    name: str
    metric: str
    values: dict[str, float | None]
    chance: float | None
    paper: float | None


def rows(evaluated: Mapping[str, Evaluated]) -> list[Row]:
    """A row for each reported metric of each task, those of one on several weights together.

    Tasks of two suites that have one title are told apart by the suite, and further sections of one
    task by their names.
    """
    suites: dict[str, set[str]] = {}  # title -> the suites that it occurs in
    for one in evaluated.values():
        if one.task is not None:
            title = tasks.task(one.task).title
            suites.setdefault(title, set()).add(one.task.partition("/")[0])
    found: dict[tuple[str, str], Row] = {}
    for section, one in evaluated.items():
        task = None if one.task is None else tasks.task(one.task)
        metrics = task.metrics if task else tuple(one.values)[:1]
        published = tasks.paper(one.paper).get(task.section, {}) if task and one.paper else {}
        key, name = (task.id, task.title) if task else (section, section)
        if len(suites.get(name, ())) > 1:
            name = f"{name} ({key.partition('/')[0]})"
        if any(one.weights in found[key, m].values for m in metrics if (key, m) in found):
            key, name = section, f"{name} [{section}]"
        for metric in metrics:
            chance = task.chance if task else None
            if chance is None:
                chance = _value(one, f"{metric}_chance")
            row = Row(name, metric, {}, chance, published.get(metric))
            found.setdefault((key, metric), row).values[one.weights] = _value(one, metric)
    return [*found.values()]


def means(evaluated: Mapping[str, Evaluated]) -> tuple[list[Row], list[str]]:
    """A row for each metric of each mean over tasks, such as DataComp's over its 38 or that over
    the languages of a set, and a sentence for each that cannot be told.

    A mean is that of all of its tasks or it is none: one over fewer would be taken for it.
    """
    # name of the mean -> its tasks, and of weights what was found of them
    parts: dict[str, tuple[list[tasks.Task], dict[str, dict[str, list[float]]]]] = {}
    for one in evaluated.values():
        task = None if one.task is None else tasks.task(one.task)
        if task is None or task.mean is None:
            continue
        if task.mean not in parts:
            suite = tasks.suite(task.id.partition("/")[0])
            parts[task.mean] = [other for other in suite if other.mean == task.mean], {}
        found = parts[task.mean][1].setdefault(one.weights, {})
        values = [_value(one, metric) for metric in task.metrics]
        if None not in values:
            found[task.id] = values
    lines, missing = [], []
    for name, (those, by_weights) in parts.items():
        lacking = {
            weights: len(those) - len(found)
            for weights, found in by_weights.items()
            if len(found) < len(those)
        }
        if lacking:
            counts = (
                f"{count} of the {len(those)} tasks are missing for the {weights} weights"
                for weights, count in lacking.items()
            )
            missing.append(f"There is no average of {name}: {'; '.join(counts)}.")
        whole = {weights: found for weights, found in by_weights.items() if weights not in lacking}
        for place in range(len(those[0].metrics) if whole else 0):
            metrics = {task.metrics[place] for task in those}
            metric = metrics.pop() if len(metrics) == 1 else ""
            values = {
                weights: math.fsum(of_task[place] for of_task in found.values()) / len(those)
                for weights, found in whole.items()
            }
            lines.append(Row(f"average of {name}", metric, values, None, None))
    return lines, missing


def as_json(evaluated: Mapping[str, Evaluated]) -> dict[str, Any]:
    """The table as JSON data."""
    averages, missing = means(evaluated)
    found: dict[str, Any] = {"rows": [row._asdict() for row in rows(evaluated)]}
    if averages:
        found["averages"] = [row._asdict() for row in averages]
    if missing:
        found["missing"] = missing
    return found


def text(evaluated: Mapping[str, Evaluated]) -> str:
    """The table for a terminal."""
    lines, missing = _cells(evaluated)
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*table, *missing])


def markdown(evaluated: Mapping[str, Evaluated]) -> str:
    """The table in Markdown."""
    lines, missing = _cells(evaluated)
    rule = ["---", "---", *["---:"] * (len(lines[0]) - 2)]
    table = ["| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]]]
    return "\n".join([*table, *(line for sentence in missing for line in ("", sentence)), ""])


def _cells(evaluated: Mapping[str, Evaluated]) -> tuple[list[Sequence[str]], list[str]]:
    weights = list(dict.fromkeys(one.weights for one in evaluated.values()))
    lines: list[Sequence[str]] = [("task", "metric", *weights, "chance", "paper")]
    averages, missing = means(evaluated)
    for row in (*rows(evaluated), *averages):
        numbers = (*(row.values.get(name) for name in weights), row.chance, row.paper)
        lines.append((row.name, row.metric, *map(_number, numbers)))
    return lines, missing


def _value(one: Evaluated, metric: str) -> float | None:
    """None where the evaluator did not find it, such as the mean of kinds where there are none."""
    found = one.values.get(metric)
    return None if found is None else float(found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
