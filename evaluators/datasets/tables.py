"""Prompts and class names as published: constants of a protocol, never to be improved.

They are clip_benchmark's (see data/clip_benchmark.LICENSE.txt), which most papers report with. Data
sets in clip_benchmark's layout bring their own, which then count. Lists called "cosmos_..." are
those that COSMOS' code has under the same labels (src/dataloaders/label.json in its repository).
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.checks.arguments import unknown

_FOLDER = Path(__file__).parent / "data"
# Data sets with masks whose classes are published.
SEGMENTATION = (
    *("voc21", "context60", "coco_object", "voc20"),
    *("cityscapes", "context59", "ade20k", "coco_stuff"),
)


def templates(name: str) -> tuple[str, ...]:
    """The prompts of a data set, with `{}` in the place of the class name, such as the 80 of
    "imagenet1k".

    Raises:
      ValueError: none are published under this name.
    """
    return tuple(text.replace("{c}", "{}") for text in _find("templates", name))


def class_names(name: str) -> tuple[str, ...]:
    """What a data set's classes are called in prompts, in the order of its labels.

    Raises:
      ValueError: none are published under this name.
    """
    return _find("class_names", name)


def segmentation_classes(name: str) -> tuple[tuple[str, ...], ...]:
    """The names of each class of a data set with masks, of SCLIP (arXiv 2312.01597), which COSMOS
    takes; class 0 of "voc21", "context60" and "coco_object" is the background.

    Raises:
      ValueError: none are published under this name.
    """
    return tuple(tuple(line.split(", ")) for line in _find("segmentation_classes", name))


def _find(table: str, name: str) -> Sequence[str]:
    found = _read(table)
    if name not in found:
        raise ValueError(unknown(f"list of {table}", name, found))
    return tuple(found[name])


@functools.cache
def _read(table: str) -> dict[str, list[str]]:
    found = {}
    for file in sorted(_FOLDER.glob(f"{table}*.json")):
        found |= json.loads(file.read_text(encoding="utf-8"))
    return found
