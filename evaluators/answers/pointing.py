"""Pointing: which of a question's boxes does a model mean? Visual7W (arXiv 1511.03416)."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from evaluators.answers.shared import asking, letters
from input_pipeline.text.boxes import format_boxes, iou, parse_boxes


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`accuracy`: the share of questions whose right box is the one that the first written box
    overlaps most; `parse_failures`, the share of answers without a box, which are wrong, as are
    those whose box overlaps none, or two alike."""

    def keep(self, record) -> asking.Kept:
        """Raises ValueError where the choices are no boxes."""
        choices, answer = letters.choices_of(record)
        try:
            boxes = [parse_boxes(choice)[0].tolist() for choice in choices]
        except ValueError as error:
            raise ValueError(
                f"Record {record['id']!r}: its choices are no boxes. {error}"
            ) from None
        return super().keep(record) | {"choices": boxes, "answer": answer}

    def right_answers(self, kept) -> list[str]:
        return [format_boxes(kept["choices"][kept["answer"]])]

    def answered(self, kept) -> bool:
        return kept["answer"] is not None

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        right, failed = np.zeros(len(kept)), np.zeros(len(kept))
        for place, (text, one) in enumerate(zip(texts, kept)):
            try:
                overlap = iou(parse_boxes(text)[0], np.array(one["choices"]))
            except ValueError:
                failed[place] = 1
                continue
            others = np.delete(overlap, one["answer"])
            right[place] = overlap[one["answer"]] > others.max()
        return {"accuracy": right, "parse_failures": failed}

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        right, failed = self.each(texts, kept).values()

        def metrics(places):
            return {
                "accuracy": float(right[places].mean()),
                "parse_failures": float(failed[places].mean()),
            }

        return self.with_groups(metrics, kept)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields what `Scoring` says, all for each control, and `accuracy_chance`.

    Attributes:
      data: its records have `question`, boxes as `choices` ("[[x0,y0,x1,y1]]"), and `answer`.

    Raises:
      ValueError: the data has no such questions, the method cannot generate, or an unknown name.
    """

    template: str = "chat_old"
    form: str = "vqa"

    def baselines(self, kept) -> Iterator[tuple[str, float]]:
        yield "accuracy_chance", letters.chance(kept)
