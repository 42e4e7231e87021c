"""Referring expression comprehension: does the box that the model writes fit the phrase?"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from evaluators import common
from evaluators.vqa import Generator, checked_controls
from input_pipeline.boxes import iou, parse_boxes
from input_pipeline.conversations import boxes_of, where_query
from input_pipeline.templates import check_template, make_prompt

IOU = 0.5


class Evaluator:
    """Yields `accuracy@0.5`, `mean_iou`, `parse_failures`, all for each control, and
    `accuracy@0.5_baseline` and `accuracy@0.5_chance`.

    Each record is asked for one of its phrases, drawn by its id. The first box of the answer is
    right if its intersection over union with a box of the phrase is 0.5 or more. An answer without
    a box is wrong, and counted in `parse_failures`. The baseline gives the mean box of the data
    every time; chance is that of any of the image's own boxes, without regard to the phrase.

    Calls `generate`, see `evaluators.vqa`.
    """

    def __init__(
        self,
        predict_fns,
        preprocess,
        mesh: jax.sharding.Mesh,
        *,
        data: Mapping[str, Any],
        template: str = "chat_old",
        controls: Sequence[str] = (),
        batch_size: int = 64,
    ):
        """Args as every evaluator's, and:

        data: name and arguments of a data source whose records have `phrases` and `boxes`.
        template: of the prompt, see `input_pipeline.templates`.
        controls: of `evaluators.vqa.CONTROLS`; each takes as long as the evaluation itself.
        batch_size: on all devices together; has no influence on the values.

        Raises:
          ValueError: the data has no boxes, the method cannot generate, or an unknown name.
        """
        check_template(template)
        self._source = common.open_source(data)
        self._generator = Generator(predict_fns, preprocess, mesh, self._source, batch_size)
        self._template = template
        self._controls = checked_controls(controls, self._source)
        self._ask(self._source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a record has no phrase with a box, or too long a one."""
        for control in (None, *self._controls):
            texts, asked = self._generator.answers(model, self._ask, control)
            suffix = f"_{control}" if control else ""
            given = [_first_box(text) for text in texts]
            overlap = np.array(
                [
                    0.0 if box is None else iou(box, np.array(own)).max()
                    for box, (own, _) in zip(given, asked)
                ]
            )
            yield f"accuracy@0.5{suffix}", float(np.mean(overlap >= IOU))
            yield f"mean_iou{suffix}", float(np.mean(overlap))
            yield f"parse_failures{suffix}", float(np.mean([box is None for box in given]))
        mean_box = np.concatenate([own for own, _ in asked]).mean(axis=0)
        fits = [iou(mean_box, np.array(own)).max() >= IOU for own, _ in asked]
        yield "accuracy@0.5_baseline", float(np.mean(fits))
        yield "accuracy@0.5_chance", float(np.mean([_chance(own, all_) for own, all_ in asked]))

    def _ask(self, record) -> tuple[str, list]:
        try:
            boxes = boxes_of(record)
        except ValueError as error:
            raise ValueError(f"Record {record['id']!r}: {error}") from error
        if not boxes:
            raise ValueError(f"Record {record['id']!r} has no phrase with a box; use such data.")
        phrase = random.Random(str(record["id"])).choice(list(boxes))
        every = np.concatenate(list(boxes.values())).tolist()
        return make_prompt(self._template, where_query(phrase)), [boxes[phrase].tolist(), every]


def _first_box(text: str) -> np.ndarray | None:
    """f64[4], or None where the text has no box."""
    try:
        return parse_boxes(text)[0]
    except ValueError:
        return None


def _chance(own: list, every: list) -> float:
    overlap = iou(np.array(every)[:, None], np.array(own)[None])
    return float(np.mean(overlap.max(axis=1) >= IOU))
