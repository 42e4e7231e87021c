"""Suites as sections of `config.evals`: of the data sets that are there, and no others.

What is expected where is told by `python -m evaluators.datasets check`; nothing is downloaded.
"""

import itertools
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluators.answers.shared.predictions import ending
from evaluators.datasets import tables, tasks
from evaluators.datasets.tasks import Task
from input_pipeline.files import listing
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.records import DATASET_FILE, given
from input_pipeline.sources import make_source
from input_pipeline.sources.shared import lists

INSTANCES = "instances.jsonl"


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
    predictions: str | os.PathLike | None = None,
) -> dict[str, dict[str, Any]]:
    """Sections of `config.evals` for the tasks of a suite whose data are whole in `root`.

    Sets that lack something are left out, and named on stderr: a download may be under way.

    Args:
      name: of `datasets.tasks.SUITES`.
      root: directory of the data sets, see `python -m evaluators.datasets check`.
      every_steps, batch_size: of every section.
      weights: which are evaluated, of "model" and "averaged"; of several, the sections of all but
        the first are called NAME_WEIGHTS.
      paper: the published model that this one repeats, such as "cosmos_vitb16_cc3m": its numbers
        are put beside in the table that `evaluate` ends with.
      predictions: directory for what a model writes, a file for each section, where its evaluator
        writes one. Without it, sets whose answers are secret are left out.

    Raises:
      ValueError: no such suite, or no such published model.
    """
    if paper is not None:
        tasks.paper(paper)
    found = [(task, find(task, root)) for task in tasks.suite(name)]
    if predictions is None:
        found = [(task, _without_secrets(task, there)) for task, there in found]
    lacking = {f"{task.folder}: {there.lacks}": None for task, there in found if there.lacks}
    if lacking:
        print(
            f"Left out of suite {name!r}, as they are not whole in {os.fspath(root)}: "
            f"{'; '.join(lacking)}.",
            file=sys.stderr,
        )
    sections = {}
    for task, there in found:
        for place, chosen in enumerate(weights):
            if there.section is not None:
                name = task.section + (f"_{chosen}" if place else "")
                form = there.section.get("form")
                file = form and predictions and f"{os.fspath(predictions)}/{name}{ending(form)}"
                sections[name] = {
                    **there.section,
                    **({"predictions": file} if file else {}),
                    "every_steps": every_steps,
                    "weights": chosen,
                    "batch_size": batch_size,
                    "task": task.id,
                    "paper": paper,
                }
    return sections


def _without_secrets(task: Task, there: Found) -> Found:
    if there.section is None or not task.secret:
        return there
    return Found(None, "nobody here can score it; give predictions=DIR for what is written")


def find(task: Task, root: str | os.PathLike) -> Found:
    """Looks for the data of a task; reads no image."""
    folder = source_path(root) / task.folder
    if "data" in task.settings:
        return _with_masks(task, source_path(root), folder)
    names, tars = listing.names_in(folder), listing.names_in(folder / "test")
    if not names and not tars:
        return Found(None, None)
    try:
        return Found(_section(task, folder, names, tars), None)
    except (FileNotFoundError, ValueError) as error:
        return Found(None, str(error).rstrip("."))


def _section(task: Task, folder, names: set[str], tars: set[str]) -> dict[str, Any]:
    """Raises FileNotFoundError or ValueError, which say what is lacking."""
    settings, path = dict(task.settings), os.fspath(folder)
    class_names, templates = lists.read(folder)
    if settings["evaluator"] == "associations":
        if INSTANCES not in names:
            raise ValueError(f"lacks {INSTANCES}")
        settings["instances"] = os.fspath(folder / INSTANCES)
    if DATASET_FILE in names:
        settings["data"] = {"name": "prepared", "path": path}
        class_names = make_source(**settings["data"]).class_names  # looks whether all is there
    elif settings["evaluator"] == "associations":
        settings["data"] = {"name": "folders", "path": path}
    elif settings.get("caption_field") != "txt" and settings["evaluator"] != "zeroshot":
        raise ValueError("holds no prepared shards")
    else:
        _check_tars(folder, tars)
        settings["data"] = {"name": "clip_benchmark", "path": path, "groups": task.groups}
    if settings["evaluator"] == "zeroshot":
        _add_lists(settings, task, class_names, templates)
    return settings


def _with_masks(task: Task, root, folder) -> Found:
    """Of a task that says how its folder is laid out; several have one, so that prepared shards are
    each in a folder of the task's name."""
    data = {**task.settings["data"], "path": os.fspath(folder)}
    prepared = root / task.section
    if DATASET_FILE in listing.names_in(prepared):
        data = {"name": "prepared", "path": os.fspath(prepared)}
    elif not folder.is_dir():
        return Found(None, None)
    try:
        make_source(**data)  # looks whether all is there
    except (FileNotFoundError, ValueError) as error:
        return Found(None, str(error).rstrip("."))
    return Found({**task.settings, "data": data}, None)


def _check_tars(folder, names) -> None:
    """Raises ValueError where not all of a data set in clip_benchmark's layout are there."""
    if "nshards.txt" not in names:
        raise ValueError(f"holds neither {DATASET_FILE} nor test/nshards.txt")
    try:
        count = int(given(read_files([folder / "test" / "nshards.txt"])[0]))
    except ValueError:
        raise ValueError("has no number in test/nshards.txt") from None
    missing = [f"{number}.tar" for number in range(count) if f"{number}.tar" not in names]
    if missing or not count:
        raise ValueError(f"lacks {len(missing)} of {count} tars")


def _add_lists(settings: dict[str, Any], task: Task, class_names, templates) -> None:
    """Puts published lists in the place of those that the data do not bring.

    Raises:
      ValueError: there is none; all such are named. Or the task has a list of its own, and the data
        count their classes in another order.
    """
    lacks = []
    if class_names and (own := settings.get("class_names")):
        _check_order(class_names, tables.class_names(own), own)
    for brought, file, key, table in (
        (class_names, lists.CLASS_NAMES, "class_names", tables.class_names),
        (templates, lists.TEMPLATES, "templates", tables.templates),
    ):
        if key in settings or brought:
            continue
        try:
            table(task.published[key])
        except ValueError:
            lacks.append(file)
        settings[key] = task.published[key]
    if lacks:
        raise ValueError(f"lacks {' and '.join(lacks)}")


def _check_order(brought: Sequence[str], published: Sequence[str], name: str) -> None:
    """Raises ValueError where more of the names that both lists have stand at other places than at
    the same: then a label means one class here and another there."""
    there = dict(zip(map(_plain, published), itertools.count()))
    here = dict(zip(map(_plain, brought), itertools.count()))
    moved = [known for known in here.keys() & there if here[known] != there[known]]
    if 2 * len(moved) > len(here.keys() & there):
        first = min(moved, key=here.get)
        raise ValueError(
            f"counts its classes in another order than the list {name}: {first!r} is class "
            f"{here[first]} of the data and {there[first]} of the list"
        )


def _plain(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " ")))
