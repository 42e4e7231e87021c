"""Multiple choice, answered by writing, and open questions beside: ScienceQA, SEED-Bench, MMBench,
MMMU, MathVista, MMVP."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from evaluators.answers.shared import asking, letters, open_ended, predictions
from evaluators.shared.written import Question
from input_pipeline.text import questions


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`accuracy`, and `no_choice`, the share of answers that name no choice, which are wrong; see
    `letters.chosen`. MMMU's own script guesses there.

    Records without choices that say their `answer_type` are open questions, see `open_ended`;
    where there are both, `accuracy` is over all, and `accuracy_choices` and `accuracy_open` are of
    one kind.

    Of records with an `original`, as those of MMBench with its copies, `accuracy_circular` is the
    share of questions whose records are all answered rightly; the others are over the originals.

    Attributes:
      pairs: two records with the same `pair` belong together, as in MMVP (arXiv 2401.06209), and
        `accuracy_of_pairs` is the share of pairs with both right.
      instruction: the line behind the choices.
    """

    pairs: bool = False
    instruction: str = questions.INSTRUCTION

    def query(self, record) -> str:
        return self.asked(record, 0)

    def asked(self, record, shift: int) -> str:
        """The question with its choices, moved by so many places."""
        question = super().query(record)
        if questions.is_open(record):
            return questions.with_kind(record, question)
        choices, _ = letters.choices_of(record)
        moved = choices[shift:] + choices[:shift]
        return questions.with_choices(record, question, moved, self.instruction)

    def keep(self, record) -> asking.Kept:
        kept = super().keep(record)
        if self.pairs:
            kept["pair"] = letters.pair_of(record)
        if record.get("original") is not None:
            kept["original"] = str(record["original"])
        if not questions.is_open(record):
            choices, answer = letters.choices_of(record)
            return kept | {"choices": choices, "answer": answer}
        return kept | {
            "choices": [],
            "answers": [str(answer) for answer in record.get("answers", ())],
            "answer_type": record["answer_type"],
            "precision": record.get("precision"),
        }

    def right_answers(self, kept) -> list[str]:
        if not kept["choices"]:
            return kept["answers"]
        return [f"{letters.LETTERS[kept['answer']]}. {kept['choices'][kept['answer']]}"]

    def answered(self, kept) -> bool:
        return kept["answer"] is not None if kept["choices"] else bool(kept["answers"])

    def check(self, kept) -> None:
        super().check(kept)
        if self.pairs:
            letters.check_pairs(kept)

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        right = _right(texts, kept, 0).astype(np.float64)
        none = [
            bool(one["choices"]) and letters.chosen(text, one["choices"]) is None
            for text, one in zip(texts, kept)
        ]
        return {"accuracy": right, "no_choice": np.array(none, np.float64)}

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        right, none = self.each(texts, kept).values()
        with_choices = np.array([bool(one["choices"]) for one in kept])

        def metrics(every):
            places = every[[_is_original(kept[place]) for place in every]]
            found = {"accuracy": float(right[places].mean())}
            if len(places) < len(every):
                wrong = {
                    kept[place].get("original", kept[place]["id"])
                    for place in every
                    if not right[place]
                }
                found["accuracy_circular"] = (len(places) - len(wrong)) / len(places)
            choices, opened = places[with_choices[places]], places[~with_choices[places]]
            if len(choices) and len(opened):
                found["accuracy_choices"] = float(right[choices].mean())
                found["accuracy_open"] = float(right[opened].mean())
            if len(choices):
                found["no_choice"] = float(none[choices].mean())
            return found

        yield from self.with_groups(metrics, kept)
        if self.pairs:
            yield "accuracy_of_pairs", letters.right_of_pairs(right, kept)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields what `Scoring` says, all for each control, and `accuracy_chance`.

    `predictions` hold the letters of choices; answers that name none, and those of open questions,
    stand there as they were written.

    Attributes:
      data: its records have `question`, and `choices` with `answer`, or `answer_type` with
        `answers`.
      circular: ask each question once for each of its choices, which move on by a place (MMBench's
        CircularEval, arXiv 2307.06281); `accuracy_circular` is the share of questions that are
        answered right every time. Takes as many times as long, and data without copies.

    Raises:
      ValueError: the data has no such questions, the method cannot generate, or an unknown name.
    """

    circular: bool = False
    template: str = "vqa"
    form: str = "mmmu"

    writes_letters = True

    def keep(self, record) -> asking.Kept:
        """Of circular evaluation the prompts with moved choices, too, and their tokens. Raises
        ValueError where copies of a question would be asked with their choices moved."""
        kept = super().keep(record)
        if self.circular and "original" in kept:
            raise ValueError(
                f"Record {record['id']!r} is one of copies with the choices moved, which "
                "circular=True makes itself: leave out one of both."
            )
        if self.circular:
            shifts = range(1, len(kept["choices"]))
            kept["moved"] = [self.prompt_of(record, self.asked(record, shift)) for shift in shifts]
        return kept

    def put(self, texts, kept) -> None:
        by_place = predictions.is_by_place(self.form)
        written = [_written(text, one["choices"], by_place) for text, one in zip(texts, kept)]
        super().put(written, kept)

    def further(self, model, control, texts, kept) -> Iterator[tuple[str, float]]:
        if not self.circular:
            return
        right = _right(texts, kept, 0)
        for shift in range(1, max(len(one["choices"]) for one in kept)):
            rows = [row for row, one in enumerate(kept) if len(one["choices"]) > shift]
            asked = [Question(row, *kept[row]["moved"][shift - 1]) for row in rows]
            moved = self.write(model, asked, control)
            right[rows] &= _right(moved, [kept[row] for row in rows], shift)
        yield "accuracy_circular", float(right.mean())

    def baselines(self, kept) -> Iterator[tuple[str, float]]:
        if any(one["choices"] for one in kept):
            yield "accuracy_chance", letters.chance([one for one in kept if _is_original(one)])


def _is_original(one: asking.Kept) -> bool:
    """Whether a record is no copy of another."""
    return one.get("original", one["id"]) == one["id"]


def _written(text: str, choices: Sequence[str], by_place: bool) -> str:
    """The letter of the choice that an answer names; where it names none the answer, or nothing in
    a form that has their places alone."""
    place = letters.chosen(text, choices)
    if place is None:
        return "" if by_place else text
    return letters.LETTERS[place]


def _right(texts: Sequence[str], kept: Sequence[asking.Kept], shift: int) -> np.ndarray:
    """bool[N], where the choices are moved."""
    right = []
    for text, one in zip(texts, kept):
        if not (choices := one["choices"]):
            known = one["answers"], one["answer_type"], one["precision"]
            right.append(open_ended.is_right(text, *known))
            continue
        moved = choices[shift:] + choices[:shift]
        right.append(letters.chosen(text, moved) == (one["answer"] - shift) % len(choices))
    return np.array(right)
