"""Answers for a judge: MM-Vet, LLaVA-Bench and TouchStone, whose scripts ask a language model."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from evaluators.answers.shared import asking, predictions

MODEL = "big_vlp"


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`words`, how many an answer has on average, and `empty`, the share of those without any: no
    score, but what tells answers that are cut off or missing before a judge is paid."""

    right = None

    def keep(self, record) -> asking.Kept:
        question = self.query(record)
        beside = {
            "question": question,
            "prompt": question,
            "answer_id": predictions.identity(record),
            "model_id": MODEL,
            "metadata": {},
            "human_annotation": record.get("description"),
            "gpt4_ha_answer": next(iter(record.get("answers", ())), None),
            "category": record.get("category"),
            "task_name": record.get("task"),
        }
        return super().keep(record) | {"beside": beside}

    def right_answers(self, kept) -> list[str]:
        given = kept["beside"]["gpt4_ha_answer"]
        return [given] if given else []

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        lengths = np.array([len(text.split()) for text in texts], np.float64)
        return {"words": lengths, "empty": np.float64(lengths == 0)}

    def answered(self, kept) -> bool:
        return True  # what is right is the judge's affair

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        words, empty = self.each(texts, kept).values()

        def metrics(places):
            return {"words": float(words[places].mean()), "empty": float(empty[places].mean())}

        return self.with_groups(metrics, kept)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Writes `predictions` and yields what `Scoring` says, for each control as well. How long
    answers may be is the method's `max_new_tokens`; the judged benchmarks' models wrote up to
    1,024.

    Attributes:
      data: its records have `question`, and what the form's columns hold: `description` (what
        people say of the image), `answers`, `category` and `task`.
      form: "mmvet", "llava_bench" or "touchstone".

    Raises:
      ValueError: the data has no questions or lacks a column, the method cannot generate, or no
        `predictions` are asked for.
    """

    template: str = "chat_old"
    form: str = "mmvet"

    def __post_init__(self):
        if self.predictions is None:
            raise ValueError("transcripts are for a judge: give predictions=FILE and their form.")
        super().__post_init__()
