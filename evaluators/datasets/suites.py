"""Suites as sections of `config.evals`: of the data sets that are there, and no others.

What is expected where is told by `python -m evaluators.datasets check`; nothing is downloaded.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluators.datasets import tables, tasks
from evaluators.datasets.tasks import Task
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files import listing
from input_pipeline.files.ranges import source_path

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
INSTANCES = "instances.jsonl"


class SuiteError(BigVlpError, ValueError):
    """A data set is there, but something of it is not; the message says what, and of all such."""


class Found(NamedTuple):
    """What is there of a task: its section without a schedule, or why it cannot be asked.

    `section` and `lacks` are both None where there is no such folder.
    """

    section: dict[str, Any] | None
    lacks: str | None


def suite(
    name: str,
    root: str | os.PathLike = "data",
    *,
    every_steps: int,
    weights: Sequence[str] = ("model",),
    batch_size: int = 512,
    paper: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Sections of `config.evals` for the tasks of a suite whose data are in `root`.

    Args:
      name: of `datasets.tasks.SUITES`.
      root: directory of the data sets, see `python -m evaluators.datasets check`.
      every_steps, batch_size: of every section.
      weights: which are evaluated, of "model" and "averaged"; of several, the sections of all but
        the first are called NAME_WEIGHTS.
      paper: the published model that this one repeats, such as "cosmos_vitb16_cc3m": its numbers
        are put beside in the table that `evaluate` ends with.

    Raises:
      SuiteError: a data set is incomplete.
      ValueError: no such suite, or no such published model.
    """
    if paper is not None:
        tasks.paper(paper)
    found = [(task, find(task, root)) for task in tasks.suite(name)]
    lacking = [f"{task.folder} {there.lacks}" for task, there in found if there.lacks]
    if lacking:
        raise SuiteError(
            f"{len(lacking)} data sets of suite {name!r} in {os.fspath(root)} are incomplete: "
            f"{'; '.join(lacking)}. Complete them, or move them away."
        )
    sections = {}
    for task, there in found:
        for place, chosen in enumerate(weights):
            if there.section is not None:
                sections[task.section + (f"_{chosen}" if place else "")] = {
                    **there.section,
                    "every_steps": every_steps,
                    "weights": chosen,
                    "batch_size": batch_size,
                    "task": task.id,
                    "paper": paper,
                }
    return sections


def find(task: Task, root: str | os.PathLike) -> Found:
    """Looks for the data of a task; reads no image."""
    folder = source_path(root) / task.folder
    settings = dict(task.settings)
    if "data" in settings:
        return _with_masks(settings, folder, source_path(root) / task.section)
    names = listing.names_in(folder)
    if "dataset.json" in names:
        settings["data"] = {"name": "prepared", "path": os.fspath(folder)}
        return _with_lists(settings, task, ((TEMPLATES, "templates", tables.templates),))
    tars = listing.names_in(folder / "test")
    if not names and not tars:
        return Found(None, None)
    if "instances" in settings:
        if INSTANCES not in names:
            return Found(None, f"lacks {INSTANCES}")
        settings["data"] = {"name": "folders", "path": os.fspath(folder)}
        return Found({**settings, "instances": os.fspath(folder / INSTANCES)}, None)
    if settings["evaluator"] in ("hard_negatives", "matching"):
        return Found(None, "holds no prepared shards")
    if "nshards.txt" not in tars:
        return Found(None, "holds neither dataset.json nor test/nshards.txt")
    settings["data"] = {
        "name": "clip_benchmark",
        "path": os.fspath(folder),
        "groups": tasks.groups_of(task),
    }
    wanted = (
        (CLASS_NAMES, "class_names", tables.class_names),
        (TEMPLATES, "templates", tables.templates),
    )
    return _with_lists(settings, task, [row for row in wanted if row[0] not in names])


def _with_masks(settings: dict[str, Any], folder, prepared) -> Found:
    """The section of a task with masks, which says how its folder is laid out; several tasks have
    one, so that prepared shards are each in a folder of the task's name."""
    data = settings["data"]
    if "dataset.json" in listing.names_in(prepared):
        data = {"name": "prepared", "path": os.fspath(prepared)}
        return Found({**settings, "data": data}, None)
    wanted = [data[part] for part in ("images", "masks", "names") if part in data]
    lacks = [part for part in wanted if not _is_there(folder / part)]
    if lacks:
        return Found(None, f"lacks {' and '.join(lacks)}" if listing.names_in(folder) else None)
    return Found({**settings, "data": {**data, "path": os.fspath(folder)}}, None)


def _is_there(path) -> bool:
    """Of a file, or of a folder that has something in it, also in a bucket."""
    return path.name in listing.names_in(path.parent) or bool(listing.names_in(path))


def _with_lists(settings: dict[str, Any], task: Task, wanted) -> Found:
    """The section with published lists in the place of (file, key, lists) that are not there."""
    lacks = []
    for file, key, table in wanted if settings["evaluator"] == "zeroshot" else ():
        if key not in settings:
            try:
                table(task.published[key])
            except ValueError:
                lacks.append(file)
            settings[key] = task.published[key]
    return Found(None, f"lacks {' and '.join(lacks)}") if lacks else Found(settings, None)
