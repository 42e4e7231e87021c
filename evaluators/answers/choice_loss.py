"""Multiple choice by likelihood: which choice does a model find the most likely answer?"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from evaluators.answers.shared import asking, letters, predictions
from evaluators.shared import base
from evaluators.shared.rows import NUM_THREADS, RowMap, each_once, map_fields
from evaluators.shared.written import checked_controls, image_for, rows_with_images
from input_pipeline.records import given, naming
from input_pipeline.text import questions
from input_pipeline.text.conversations import Turn
from input_pipeline.text.templates import check_template, make_prompt

IMAGES = 2 * NUM_THREADS  # that wait for their other choices


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(asking.Scoring, base.Evaluator):
    """Yields `accuracy`, all for each control, and `accuracy_chance`; with `by` for each group.

    The question is asked without its choices; of them the one counts as given that has the least
    loss for each of its tokens, end of sentence among them (SEED-Bench, arXiv 2307.16125). Where
    losses tie or are NaN, the answer is wrong. Boxes as choices are Visual7W's pointing; their
    letters, in `predictions`, are scored by the metric multiple_choice.

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
    writes_letters = True

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
        first = self._kept(given(self.source.fields([0])[0]))
        asking.check_first(self, self.predictions, self.form, first)

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises BrokenRecordError before any loss where choices are missing or too long."""
        kept = map_fields(self.mesh, self.source, self._kept, range(len(self.source)))
        asking.check_before(self, self.mesh, self.predictions, self.form, kept)
        asked = [
            (row, place) for row, one in enumerate(kept) for place in range(len(one["choices"]))
        ]
        firsts = np.cumsum([0, *(len(one["choices"]) for one in kept)])
        for control in (None, *self.controls):
            image_of = each_once(
                functools.partial(
                    image_for, source=self.source, preprocess=self.preprocess, control=control
                ),
                IMAGES,
            )

            def load(number, image_of=image_of):
                row, place = asked[number]
                turn = Turn(kept[row]["query"], kept[row]["choices"][place])
                arrays = self._rows.example(self.template, turn)
                return {"images": image_of(row), **arrays}

            losses = self._losses(model, load, len(asked), self.batch_size)
            least = [_least(losses[first:last]) for first, last in itertools.pairwise(firsts)]
            if control is None and self.predictions is not None:
                texts = ["" if place is None else letters.LETTERS[place] for place in least]
                asking.put(self.mesh, self.predictions, self.form, texts, kept)
                if not any(map(self.answered, kept)):
                    return
            right = np.array([place == one["answer"] for place, one in zip(least, kept)])
            suffix = f"_{control}" if control else ""
            metrics = functools.partial(_accuracy, right)
            for name, value in self.with_groups(metrics, kept):
                yield f"{name}{suffix}", value
            if self.pairs:
                yield f"accuracy_of_pairs{suffix}", letters.right_of_pairs(right, kept)
        yield "accuracy_chance", letters.chance(kept)

    def _means(self, model, batch):
        losses, counts = self.predict_fns["token_losses"](model, batch)
        return losses / jnp.maximum(counts, 1)

    def _kept(self, record) -> asking.Kept:
        query = questions.with_hint(record, self.query(record))
        choices, answer = letters.choices_of(record)
        kept = self.keep(record) | {"query": query, "choices": choices, "answer": answer}
        if self.pairs:
            kept["pair"] = letters.pair_of(record)
        with naming(record):
            for choice in choices:
                self._check_room(query, choice)
        return kept

    def _check_room(self, query: str, choice: str) -> None:
        text, most = self._rows.text, self._rows.context_length
        prompt = make_prompt(self.template, query)
        count = len(text.encode(prompt)) + len(text.encode(choice)) + 1
        if count > most:
            raise ValueError(
                f"its question with the choice {choice[:80]!r} has {count} tokens; with "
                f"context_length={most} it may have no more. Raise context_length, or leave the "
                "record out."
            )

    def answered(self, kept) -> bool:
        return kept["answer"] is not None

    def check(self, kept) -> None:
        super().check(kept)
        if self.pairs:
            letters.check_pairs(kept)


def _accuracy(right: np.ndarray, places: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(right[places].mean())}


def _least(losses: np.ndarray) -> int | None:
    """The place of the least; None where there are several, or one is NaN."""
    place = int(losses.argmin())
    return place if (losses[place] < np.delete(losses, place)).all() else None
