"""The table that an evaluation ends with: tasks by weights, with chance and the paper's numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evaluators.datasets import tasks

AVERAGED = "datacomp38"  # the suite whose mean over all of its tasks is reported


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


def average(evaluated: Mapping[str, Evaluated]) -> tuple[dict[str, float], str]:
    """The mean of DataComp's main metrics by weights, and a sentence where there is none.

    It is that of all 38 tasks or it is none: a mean over fewer would be taken for it.
    """
    suite = tasks.suite(AVERAGED)
    by_weights: dict[str, dict[str, float]] = {}
    for one in evaluated.values():
        if one.task is not None and one.task.startswith(f"{AVERAGED}/"):
            found = by_weights.setdefault(one.weights, {})
            if (value := _value(one, tasks.task(one.task).metrics[0])) is not None:
                found[one.task] = value
    means = {
        weights: math.fsum(found.values()) / len(suite)
        for weights, found in by_weights.items()
        if len(found) == len(suite)
    }
    missing = [
        f"{len(suite) - len(found)} of the {len(suite)} tasks are missing for the {weights} weights"
        for weights, found in by_weights.items()
        if weights not in means
    ]
    return means, f"There is no average of {AVERAGED}: {'; '.join(missing)}." if missing else ""


def as_json(evaluated: Mapping[str, Evaluated]) -> dict[str, Any]:
    """The table as JSON data."""
    means, missing = average(evaluated)
    found: dict[str, Any] = {"rows": [row._asdict() for row in rows(evaluated)]}
    if means or missing:
        found["average"] = means or missing
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
    return "\n".join([*table, *([missing] if missing else [])])


def markdown(evaluated: Mapping[str, Evaluated]) -> str:
    """The table in Markdown."""
    lines, missing = _cells(evaluated)
    rule = ["---", "---", *["---:"] * (len(lines[0]) - 2)]
    table = ["| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]]]
    return "\n".join([*table, *(["", missing] if missing else []), ""])


def _cells(evaluated: Mapping[str, Evaluated]) -> tuple[list[Sequence[str]], str]:
    weights = list(dict.fromkeys(one.weights for one in evaluated.values()))
    lines: list[Sequence[str]] = [("task", "metric", *weights, "chance", "paper")]
    for row in rows(evaluated):
        numbers = (*(row.values.get(name) for name in weights), row.chance, row.paper)
        lines.append((row.name, row.metric, *map(_number, numbers)))
    means, missing = average(evaluated)
    if means:
        lines.append(
            (f"average of {AVERAGED}", "", *(_number(means.get(name)) for name in weights), "", "")
        )
    return lines, missing


def _value(one: Evaluated, metric: str) -> float | None:
    """None where the evaluator did not find it, such as the mean of kinds where there are none."""
    found = one.values.get(metric)
    return None if found is None else float(found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
