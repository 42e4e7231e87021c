"""Referring expression comprehension: does the box that the model writes fit the phrase?"""

import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from big_vlp.parallel.processes import raise_together
from evaluators.shared.rows import NUM_THREADS, gather_rows, load_row
from evaluators.shared.written import WritingEvaluator
from input_pipeline.records import naming
from input_pipeline.text.boxes import iou, parse_boxes
from input_pipeline.text.conversations import boxes_of, where_query
from input_pipeline.text.templates import make_prompt

IOU = 0.5


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(WritingEvaluator):
    """Yields `accuracy@0.5`, `mean_iou`, `parse_failures`, all for each control, and
    `accuracy@0.5_baseline` and `accuracy@0.5_chance`.

    All are means over expressions: each phrase of each record is asked for, and counts as often as
    it is given for the same box. The first box of the answer is right if its intersection over
    union with a box of the phrase is 0.5 or more. An answer without a box is wrong, and counted in
    `parse_failures`. The baseline gives the mean box of the data every time; chance is that of any
    of the image's own boxes, without regard to the phrase.

    Attributes:
      data: its records have `phrases` and `boxes`.

    Raises:
      ValueError: the data has no boxes, the method cannot generate, or an unknown name.
    """

    template: str = "chat_old"

    def __post_init__(self):
        super().__post_init__()
        self._expressions(0)  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a record has no phrase with a box, or too long a one."""
        asked = self._all_expressions()
        times = [expression.times for expression in asked]

        def ask(number):
            row = asked[number].row
            prompt = make_prompt(self.template, where_query(asked[number].phrase))
            return row, self.source[row], prompt

        def mean(values):
            return float(np.average(values, weights=times))

        for control in (None, *self.controls):
            texts = self.write(model, ask, len(asked), control)
            suffix = f"_{control}" if control else ""
            given = [_first_box(text) for text in texts]
            overlap = np.array(
                [
                    0.0 if box is None else iou(box, np.array(expression.boxes)).max()
                    for box, expression in zip(given, asked)
                ]
            )
            yield f"accuracy@0.5{suffix}", mean(overlap >= IOU)
            yield f"mean_iou{suffix}", mean(overlap)
            yield f"parse_failures{suffix}", mean([box is None for box in given])
        mean_box = np.concatenate([expression.boxes for expression in asked]).mean(axis=0)
        fits = [iou(mean_box, np.array(expression.boxes)).max() >= IOU for expression in asked]
        yield "accuracy@0.5_baseline", mean(fits)
        yield "accuracy@0.5_chance", mean([_chance(e.boxes, e.all_boxes) for e in asked])

    def _all_expressions(self) -> list["Expression"]:
        """Those of all records, on every host; each record is read by one."""
        count = len(self.source)
        own = range(jax.process_index(), count, jax.process_count())
        read, found, error = functools.partial(load_row, self._expressions), {}, None
        try:
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                found = dict(zip(own, pool.map(read, own)))
        except Exception as failed:
            error = failed
        raise_together(self.mesh, error)
        every = gather_rows(found, count)
        return [Expression(*values) for record in every for values in record]

    def _expressions(self, row: int) -> list["Expression"]:
        record = self.source[row]
        with naming(record):
            boxes = boxes_of(record)
        if not boxes:
            raise ValueError(f"Record {record['id']!r} has no phrase with a box; use such data.")
        all_boxes = np.concatenate(list(boxes.values())).tolist()
        return [
            Expression(
                row,
                phrase,
                own.tolist(),
                all_boxes,
                int(np.unique(own, axis=0, return_counts=True)[1].max()),
            )
            for phrase, own in boxes.items()
        ]


class Expression(NamedTuple):
    """What a record's image is asked for, as JSON data.

    Attributes:
      row: of the record.
      phrase: without the question.
      boxes: those that are right.
      all_boxes: of the image.
      times: how often it is given for the same box.
    """

    row: int
    phrase: str
    boxes: list[list[float]]
    all_boxes: list[list[float]]
    times: int


def _first_box(text: str) -> np.ndarray | None:
    """f64[4], or None where the text has no box."""
    try:
        return parse_boxes(text)[0]
    except ValueError:
        return None


def _chance(own: list, every: list) -> float:
    overlap = iou(np.array(every)[:, None], np.array(own)[None])
    return float(np.mean(overlap.max(axis=1) >= IOU))
