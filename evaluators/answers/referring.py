"""Referring expression comprehension: does the box that the model writes fit the phrase?"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from evaluators.answers.shared import asking
from input_pipeline.records import naming
from input_pipeline.text.boxes import distinct, format_boxes, iou, parse_boxes
from input_pipeline.text.conversations import boxes_of, where_query

IOU = 0.5


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`accuracy@0.5`, `mean_iou` and `parse_failures`.

    All are means over expressions: each phrase of each record is asked for, and counts as often as
    it is given for the same box. The first box of the answer is right if its intersection over
    union with a box of the phrase is 0.5 or more. An answer without a box is wrong, and counted in
    `parse_failures`. Its id is that of the record with the phrase's number behind, from 0:
    "RECORD/NUMBER".
    """

    def questions_of(self, record) -> list[tuple[str, asking.Kept]]:
        """Raises ValueError where the record has no phrase with a box."""
        with naming(record):
            boxes = boxes_of(record)
        if not boxes:
            raise ValueError(f"Record {record['id']!r} has no phrase with a box; use such data.")
        kept = self.keep(record)
        every = np.concatenate(list(boxes.values()))
        return [
            (
                where_query(phrase),
                kept
                | {
                    "id": f"{kept['id']}/{number}",
                    "boxes": own.tolist(),
                    "chance": float(np.mean(iou(every[:, None], own).max(axis=1) >= IOU)),
                    "times": int(np.unique(own, axis=0, return_counts=True)[1].max()),
                },
            )
            for number, (phrase, own) in enumerate(boxes.items())
        ]

    def right_answers(self, kept) -> list[str]:
        return [format_boxes(distinct(kept["boxes"]))]

    def answered(self, kept) -> bool:
        return True

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        """Their means are weighted by `times`."""
        given = [_first_box(text) for text in texts]
        failed = np.array([box is None for box in given])
        overlap = np.array(
            [
                0.0 if box is None else iou(box, np.array(one["boxes"])).max()
                for box, one in zip(given, kept)
            ]
        )
        hits, failures = (overlap >= IOU).astype(np.float64), failed.astype(np.float64)
        return {"accuracy@0.5": hits, "mean_iou": overlap, "parse_failures": failures}

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        each = self.each(texts, kept)
        times = np.array([one["times"] for one in kept])

        def metrics(places):
            weights = times[places]
            return {
                name: float(np.average(values[places], weights=weights))
                for name, values in each.items()
            }

        return self.with_groups(metrics, kept)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields what `Scoring` says, all for each control, and `accuracy@0.5_baseline` and
    `accuracy@0.5_chance`.

    The baseline gives the mean box of the data every time; chance is that of any of the image's own
    boxes, without regard to the phrase.

    Attributes:
      data: its records have `phrases` and `boxes`.

    Raises:
      ValueError: the data has no boxes, the method cannot generate, or an unknown name.
    """

    template: str = "chat_old"

    def baselines(self, kept) -> Iterator[tuple[str, float]]:
        times = [one["times"] for one in kept]
        mean_box = np.concatenate([one["boxes"] for one in kept]).mean(axis=0)
        fits = [iou(mean_box, np.array(one["boxes"])).max() >= IOU for one in kept]
        chances = [one["chance"] for one in kept]
        yield "accuracy@0.5_baseline", float(np.average(fits, weights=times))
        yield "accuracy@0.5_chance", float(np.average(chances, weights=times))


def _first_box(text: str) -> np.ndarray | None:
    """f64[4], or None where the text has no box."""
    try:
        return parse_boxes(text)[0]
    except ValueError:
        return None
