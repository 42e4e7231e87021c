"""Multiple choice, answered by writing: ScienceQA, SEED-Bench, MMBench, MMMU, MMVP."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from evaluators.answers.shared import asking, letters

_INSTRUCTION = "Answer with the option's letter from the given choices directly."


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`accuracy`, and `no_choice`, the share of answers that name no choice, which are wrong; see
    `letters.chosen`. MMMU's own script guesses there.

    Attributes:
      pairs: neighbouring records are a pair, as in MMVP (arXiv 2401.06209), and `accuracy_of_pairs`
        is the share of pairs with both right.
      instruction: the line behind the choices.
    """

    pairs: bool = False
    instruction: str = _INSTRUCTION

    def query(self, record) -> str:
        return self.asked(record, 0)

    def asked(self, record, shift: int) -> str:
        """The question with its choices, moved by so many places."""
        choices, _ = letters.choices_of(record)
        question = letters.asked_of(record, super().query(record))
        listed = letters.listed(choices[shift:] + choices[:shift])
        return "\n".join(filter(None, (question, listed, self.instruction)))

    def keep(self, record) -> asking.Kept:
        choices, answer = letters.choices_of(record)
        return super().keep(record) | {"choices": choices, "answer": answer}

    def right_answers(self, kept) -> list[str]:
        return [f"{letters.LETTERS[kept['answer']]}. {kept['choices'][kept['answer']]}"]

    def answered(self, kept) -> bool:
        return kept["answer"] is not None

    def check(self, kept) -> None:
        super().check(kept)
        if self.pairs:
            letters.check_pairs(len(kept))

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        given = [letters.chosen(text, one["choices"]) for text, one in zip(texts, kept)]
        right = np.array([place == one["answer"] for place, one in zip(given, kept)], np.float64)
        none = np.array([place is None for place in given], np.float64)
        return {"accuracy": right, "no_choice": none}

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        right, none = self.each(texts, kept).values()

        def metrics(places):
            return {
                "accuracy": float(right[places].mean()),
                "no_choice": float(none[places].mean()),
            }

        yield from self.with_groups(metrics, kept)
        if self.pairs:
            yield "accuracy_of_pairs", letters.right_of_pairs(right)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields what `Scoring` says, all for each control, and `accuracy_chance`.

    Attributes:
      data: its records have `question`, `choices` and `answer`.
      circular: ask each question once for each of its choices, which move on by a place (MMBench's
        CircularEval, arXiv 2307.06281); `accuracy_circular` is the share of questions that are
        answered right every time. Takes as many times as long.

    Raises:
      ValueError: the data has no such questions, the method cannot generate, or an unknown name.
    """

    circular: bool = False
    template: str = "vqa"
    form: str = "mmmu"

    def further(self, model, control, texts, kept) -> Iterator[tuple[str, float]]:
        if not self.circular:
            return
        right = _right(texts, kept, 0)
        for shift in range(1, max(len(one["choices"]) for one in kept)):
            rows = [row for row, one in enumerate(kept) if len(one["choices"]) > shift]

            def ask(record, shift=shift):
                return [(self.asked(record, shift), None)]

            moved = self.write(model, self.questions_about(rows, ask)[0], control)
            right[rows] &= _right(moved, [kept[row] for row in rows], shift)
        yield "accuracy_circular", float(right.mean())

    def baselines(self, kept) -> Iterator[tuple[str, float]]:
        yield "accuracy_chance", letters.chance(kept)


def _right(texts: Sequence[str], kept: Sequence[asking.Kept], shift: int) -> np.ndarray:
    """bool[N], where the choices are moved."""
    right = []
    for text, one in zip(texts, kept):
        choices, answer = one["choices"], one["answer"]
        moved = choices[shift:] + choices[:shift]
        right.append(letters.chosen(text, moved) == (answer - shift) % len(choices))
    return np.array(right)
