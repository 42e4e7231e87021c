"""What evaluators that ask about records have in common: scores, and predictions.

Their scores need no model: a `Scoring` says what is kept of a record and what texts for all records
are worth, to an evaluator as to `python -m evaluators.answers`, which reads the texts in a file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from big_vlp.parallel.processes import raise_together
from evaluators.answers.shared import predictions
from evaluators.shared.resuming import by_first, remove_parts, using
from evaluators.shared.rows import map_fields
from evaluators.shared.written import Question, WritingEvaluator
from input_pipeline.records import BrokenRecordError, given, naming
from input_pipeline.text.templates import make_prompt

Kept = dict[str, Any]


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring:
    """What is kept of records, and scores of texts; its fields are keys of the evaluator's config.

    Attributes:
      by: a field of the records, such as category, domain or split; scores are then also told for
        each of its values, as `METRIC_VALUE`, in the order in which they occur.
    """

    by: str | None = None

    def query(self, record: Mapping[str, Any]) -> str:
        """What is asked, without the template. Raises ValueError where there is no question."""
        question = record.get("question")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"Record {record['id']!r} has no question; use data that has them.")
        return question.strip()

    def questions_of(self, record: Mapping[str, Any]) -> list[tuple[str, Kept]]:
        """(what is asked, what is kept of it) of a record, which has no `image`: most ask once.

        Raises:
          ValueError: as `query` and `keep`.
        """
        return [(self.query(record), self.keep(record))]

    def keep(self, record: Mapping[str, Any]) -> Kept:
        """What scores need to know of a record, as JSON data; a subclass adds to it.

        Raises:
          ValueError: the record has no such field as `by`, or not what is asked for.
        """
        kept = {"id": predictions.identity(record), "record": str(record["id"])}
        if self.by is not None:
            if record.get(self.by) is None:
                raise ValueError(
                    f"Record {record['id']!r} has no field {self.by!r}; by= names a field that all "
                    "records have."
                )
            kept["by"] = str(record[self.by])
        return kept

    def right_answers(self, kept: Kept) -> list[str]:
        """Texts that are right, as often as each is given."""
        return kept["answers"]

    def answered(self, kept: Kept) -> bool:
        """Whether it is known what is right; of some tests it is secret."""
        return bool(kept["answers"])

    def each(self, texts: Sequence[str], kept: Sequence[Kept]) -> dict[str, np.ndarray]:
        """metric -> f64[N] of the single answers, the benchmark's own metric first; `scores` has
        their means, or what else they come to under these names."""
        raise NotImplementedError

    def scores(self, texts: Sequence[str], kept: Sequence[Kept]) -> Iterator[tuple[str, float]]:
        """Yields (metric, value) of texts for all questions, which are all answered."""
        raise NotImplementedError

    def check(self, kept: Sequence[Kept]) -> None:
        """Raises ValueError where there are no scores of these questions, whatever is written: it
        is not known of every one what is right."""
        secret = [one["record"] for one in kept if not self.answered(one)]
        if secret:
            raise ValueError(
                f"Record {secret[0]!r} has no {self.wanted}; {len(secret):,} of {len(kept):,} have "
                "none. Use data that have them, or write predictions=FILE to hand in."
            )

    wanted: ClassVar[str] = "answers"
    # Whether its evaluator writes letters of choices in place of what the model does.
    writes_letters: ClassVar[bool] = False
    # Of an answer, in the first metric of `each`; None where answers are better or worse alone.
    right: ClassVar[float | None] = 1.0

    def with_groups(
        self,
        metrics: Callable[[np.ndarray], Mapping[str, float]],
        kept: Sequence[Kept],
    ) -> Iterator[tuple[str, float]]:
        """What `metrics` gives of all places, i[N], and then of those of each group."""
        yield from metrics(np.arange(len(kept))).items()
        for name, places in self.groups(kept).items():
            for metric, value in metrics(places).items():
                yield f"{metric}_{name}", value

    def groups(self, kept: Sequence[Kept]) -> dict[str, np.ndarray]:
        """Places of the questions of each group; empty without `by`."""
        found: dict[str, list[int]] = {}
        for place, one in enumerate(kept):
            if "by" in one:
                found.setdefault(one["by"], []).append(place)
        return {name: np.array(places) for name, places in found.items()}


@dataclasses.dataclass(kw_only=True, eq=False)
class AskingEvaluator(Scoring, WritingEvaluator):
    """The base of evaluators that ask about records and score what is written.

    Yields what `scores` does, for the model and for each control with its name behind.

    Attributes:
      predictions: a file into which what the model writes (not the controls) is put before it is
        scored, and whatever was in it is not; of data whose answers are secret nothing else comes.
        See also `WritingEvaluator`.
      form: of that file, one of `predictions.FORMS`.
    """

    form: str = "vqa"

    def __post_init__(self):
        predictions.check_form(self.form)
        super().__post_init__()
        for _, kept in self.questions_of(given(self.source.fields([0])[0])):
            check_first(self, self.predictions, self.form, kept)

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises BrokenRecordError before anything is written where a record cannot be asked about,
        is there twice, or cannot be scored."""
        questions, kept = self._questions()
        check_before(self, self.mesh, self.predictions, self.form, kept)
        self.begin(model)
        for control in (None, *self.controls):
            texts = self.write(model, questions, control)
            if control is None and self.predictions is not None:
                self.put(texts, kept)
                if not any(map(self.answered, kept)):
                    break
            for values in (self.scores(texts, kept), self.further(model, control, texts, kept)):
                for name, value in values:
                    yield f"{name}_{control}" if control else name, value
        else:
            yield from self.baselines(kept)
        if self.predictions is not None:
            remove_parts(self.predictions)

    def further(
        self, model, control: str | None, texts: Sequence[str], kept: Sequence[Kept]
    ) -> Iterator[tuple[str, float]]:
        """Yields what takes further questions to the model, after `scores` of these."""
        del model, control, texts, kept
        return iter(())

    def baselines(self, kept: Sequence[Kept]) -> Iterator[tuple[str, float]]:
        """Yields what is had without any model, named METRIC_baseline or METRIC_chance."""
        del kept
        return iter(())

    def put(self, texts: Sequence[str], kept: Sequence[Kept]) -> None:
        """Writes the predictions, by one process."""
        put(self.mesh, self.predictions, self.form, texts, kept)

    def prompt_of(self, record: Mapping[str, Any], query: str) -> tuple[str, int]:
        """The prompt that asks a record for something, and how many tokens it has.

        Raises:
          ValueError: it is too long.
        """
        prompt = make_prompt(self.template, query)
        with naming(record):
            return prompt, self.tokens_of(prompt)

    def _questions(self) -> tuple[list[Question], list[Kept]]:
        """All that is asked, and what is kept of each, on every host; no image is decoded.

        Raises:
          BrokenRecordError: a record cannot be asked about, or a prompt is too long.
        """

        def describe(record):
            asked = self.questions_of(record)
            return [(*self.prompt_of(record, query), kept) for query, kept in asked]

        found = map_fields(self.mesh, self.source, describe, range(len(self.source)))
        every = [(row, *one) for row, of_record in enumerate(found) for one in of_record]
        return [Question(*one[:3]) for one in every], [one[3] for one in every]


def check_first(scoring: Scoring, path: str | None, form: str, kept: Kept) -> None:
    """Raises ValueError when an evaluator is made, and not after training, where the first question
    cannot be scored, or written as `form`; `path` as of `check_before`."""
    if predictions.is_by_place(form) and not scoring.writes_letters:
        raise ValueError(
            f"form={form!r} has the places of choices for answers, which only the evaluators "
            "multiple_choice and choice_loss write."
        )
    if path is not None:
        predictions.check_path(path)
        predictions.columns_of(form, kept["id"], kept.get("beside", {}))
    elif not scoring.answered(kept):
        scoring.check([kept])


def check_before(scoring: Scoring, mesh, path: str | None, form: str, kept: Sequence[Kept]) -> None:
    """Ends an evaluation before anything is asked that could not be scored, or written as `form`.

    Args:
      path: of the predictions, which data without any answers are enough for; None: there are none.

    Raises:
      BrokenRecordError: an id is there twice, answers are missing, or what the form needs is.
    """
    error = None
    try:
        if path is not None:
            predictions.check_ids([one["id"] for one in kept], "The data")
            for one in kept:
                predictions.columns_of(form, one["id"], one.get("beside", {}))
        if path is None or any(map(scoring.answered, kept)):
            scoring.check(kept)
    except ValueError as failed:
        error = BrokenRecordError(str(failed))
    raise_together(mesh, error)


def put(mesh, path: str, form: str, texts: Sequence[str], kept: Sequence[Kept]) -> None:
    """Writes predictions, by one process.

    Raises:
      PartsError: there; ProcessError on the others.
    """
    ids, beside = [one["id"] for one in kept], [one.get("beside", {}) for one in kept]

    def write():
        with using(path):
            predictions.write(path, form, ids, texts, beside)

    by_first(mesh, write)
