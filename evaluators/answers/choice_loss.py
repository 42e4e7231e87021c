"""Multiple choice by likelihood: which choice does a model find the most likely answer?"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.answers.shared import asking, letters, predictions
from evaluators.shared import base
from evaluators.shared.rows import RowMap, gather_rows
from evaluators.shared.written import checked_controls, image_for, rows_with_images
from input_pipeline.records import naming
from input_pipeline.text.conversations import Turn
from input_pipeline.text.templates import check_template


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(asking.Scoring, base.Evaluator):
    """Yields `accuracy`, all for each control, and `accuracy_chance`; with `by` for each group.

    The question is asked without its choices; of them the one counts as given that has the least
    loss for each of its tokens, end of sentence among them (SEED-Bench, arXiv 2307.16125). Where
    losses tie or are NaN, the answer is wrong. Boxes as choices are Visual7W's pointing.

    Calls token_losses as `caption_loss` does.

    Attributes:
      data: its records have `question`, `choices` and `answer`.
      template: of the prompt, see `input_pipeline.text.templates`.
      controls: of `shared.written.CONTROLS`; each takes as long as the evaluation itself.
      pairs: see `multiple_choice`.
      predictions: a file into which the letters of the likeliest choices (without controls) are
        put, none where losses tie; of data whose answers are secret nothing else comes.
      form: of that file, one of `predictions.FORMS`.

    Raises:
      ValueError: the data has no such questions, the method has no token losses, or an unknown
        name.
    """

    needs = ("token_losses",)

    template: str = "vqa"
    controls: Sequence[str] = ()
    pairs: bool = False
    predictions: str | None = None
    form: str = "mmmu"
    batch_size: int = 64

    def __post_init__(self):
        check_template(self.template)
        predictions.check_form(self.form)
        super().__post_init__()
        self._rows = rows_with_images(self.preprocess)
        self._losses = RowMap(self._means, self.mesh)
        self.controls = checked_controls(self.controls, self.source)
        self._kept(0)  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a record has no choices, or too long a question."""
        own = range(jax.process_index(), len(self.source), jax.process_count())
        kept = gather_rows({row: self._kept(row) for row in own}, len(self.source))
        asked = [
            (row, place) for row, one in enumerate(kept) for place in range(len(one["choices"]))
        ]
        firsts = np.cumsum([0, *(len(one["choices"]) for one in kept)])
        for control in (None, *self.controls):

            def load(number, control=control):
                row, place = asked[number]
                record = self.source[row]
                query = letters.asked_of(record, self.query(record))
                with naming(record):
                    turn = Turn(query, kept[row]["choices"][place])
                    arrays = self._rows.example(self.template, turn)
                image = image_for(row, record, self.source, self.preprocess, control)
                return {"images": image, **arrays}

            losses = self._losses(model, load, len(asked), self.batch_size)
            least = [_least(losses[first:last]) for first, last in itertools.pairwise(firsts)]
            if control is None and self.predictions is not None:
                self.put(["" if place is None else letters.LETTERS[place] for place in least], kept)
                if not any(map(self.answered, kept)):
                    return
                self.check(kept)
            right = np.array([place == one["answer"] for place, one in zip(least, kept)])
            suffix = f"_{control}" if control else ""
            metrics = functools.partial(_accuracy, right)
            for name, value in self.with_groups(metrics, kept):
                yield f"{name}{suffix}", value
            if self.pairs:
                yield f"accuracy_of_pairs{suffix}", letters.right_of_pairs(right, kept)
        yield "accuracy_chance", letters.chance(kept)

    put = asking.AskingEvaluator.put

    def _means(self, model, batch):
        losses, counts = self.predict_fns["token_losses"](model, batch)
        return losses / jnp.maximum(counts, 1)

    def _kept(self, row: int) -> asking.Kept:
        record = self.source[row]
        self.query(record)
        choices, answer = letters.choices_of(record)
        kept = self.keep(record) | {"choices": choices, "answer": answer}
        if self.pairs:
            kept["pair"] = letters.pair_of(record)
        if self.predictions is None:
            self.check([kept])
        return kept

    def answered(self, kept) -> bool:
        return kept["answer"] is not None


def _accuracy(right: np.ndarray, places: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(right[places].mean())}


def _least(losses: np.ndarray) -> int | None:
    """The place of the least; None where there are several, or one is NaN."""
    place = int(losses.argmin())
    return place if (losses[place] < np.delete(losses, place)).all() else None
