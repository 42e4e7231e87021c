"""WinoGAViL (arXiv 2207.12576): which of several images does a cue mean?

As DataComp asks it: the prompt is "A {cue}" or "An {cue}", the n images that score best are chosen,
where n are right, and the Jaccard index of the two sets is averaged.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from evaluators.shared.metrics import jaccard_of_best
from evaluators.shared.towers import TowersEvaluator
from input_pipeline.checks import unicode
from input_pipeline.files.ranges import read_files
from input_pipeline.records import given

# Numbers of candidates that are reported together; the published main metric is the last.
_SIZES = {"jaccard_5_to_6": (5, 6), "jaccard_10_to_12": (10, 12)}


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields `jaccard`, and `jaccard_5_to_6` and `jaccard_10_to_12` of the instances with so many
    candidates, where there are such.

    Attributes:
      data: the images, each once, such as the source `folders` on the directory above them; an
        image is named by its id without folder and ending.
      instances: JSON lines of `cue`, `candidates` (names of images) and `associations` (those of
        them that are right).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is something else.
    """

    instances: str | os.PathLike

    def __post_init__(self):
        super().__post_init__()
        self._instances = _read(self.instances)

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a candidate has no image."""
        images, ids = self.encode_images(model, lambda record: record["id"])
        row = {os.path.splitext(os.path.basename(id_))[0]: i for i, id_ in enumerate(ids)}
        wanted = {name for one in self._instances for name in one["candidates"]}
        missing = sorted(wanted - row.keys())
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(wanted)} candidates in {os.fspath(self.instances)} have "
                f"no image, such as {missing[0]!r}."
            )
        prompts = list(dict.fromkeys(prompt(one["cue"]) for one in self._instances))
        texts = dict(zip(prompts, self.encode_texts(model, prompts)))
        found: dict[int, list[float]] = {}
        for one in self._instances:
            features = images[[row[name] for name in one["candidates"]]]
            scores = (features * texts[prompt(one["cue"])]).sum(axis=1)
            right = np.isin(one["candidates"], one["associations"])
            found.setdefault(len(scores), []).append(jaccard_of_best(scores, right))
        yield "jaccard", _mean(found, 0, max(found))
        for name, (least, most) in _SIZES.items():
            if any(least <= size <= most for size in found):
                yield name, _mean(found, least, most)


def prompt(cue: str) -> str:
    """What is asked for a cue."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in tuple('aeiou') else 'A'} {cue}"


def _mean(found: dict[int, list[float]], least: int, most: int) -> float:
    return float(np.mean([x for size, xs in found.items() if least <= size <= most for x in xs]))


def _read(path: str | os.PathLike) -> list[dict[str, Any]]:
    try:
        lines = given(read_files([path])[0]).splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"File of instances {os.fspath(path)} does not exist.") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            one = unicode.parse_json(line)
            candidates, right = list(one["candidates"]), set(one["associations"])
            if not (isinstance(one["cue"], str) and right and right <= set(candidates)):
                raise ValueError("no cue, no association, or one that is no candidate")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)}, line {number} is no instance ({error}): give cue, candidates "
                "and associations."
            ) from None
        found.append(one)
    if not found:
        raise ValueError(f"{os.fspath(path)} has no instance.")
    return found
