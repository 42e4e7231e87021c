"""Visual question answering: generated answers against those of people."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from evaluators.answers.shared import asking
from evaluators.answers.shared.agreement import NORMALISATIONS, normalise, soft_accuracy
from input_pipeline.checks.arguments import unknown


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`exact_match` is the share of answers that equal the one given most often, `vqa_accuracy` the
    mean of `soft_accuracy`; both after normalisation, also where all people agree (the official
    script then compares letter by letter, so that "Yes" is no "yes").

    With `by` also the arithmetic and the harmonic mean of each over the groups, as TDIUC's mean per
    type (arXiv 1703.09684): `METRIC_of_groups`, `METRIC_of_groups_harmonic`, which is 0 where a
    group's is. `exact_match_of_groups_by_answer` and its `_harmonic` are TDIUC's normalised ones: a
    group's value is the mean over its right answers of the share of their questions that are
    answered so, and rare answers count as much as frequent ones.

    Attributes:
      normalisation: "vqa", the official one; "textvqa", that of TextVQA's server; "plain", which
        compares letter by letter but for the case and space around, as OCR-VQA and GQA do.

    Raises:
      ValueError: unknown normalisation.
    """

    normalisation: str = "vqa"

    def __post_init__(self):
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(unknown("normalisation", self.normalisation, NORMALISATIONS))

    def keep(self, record) -> asking.Kept:
        answers = [str(answer) for answer in record.get("answers", ())]
        return super().keep(record) | {"question": record["question"], "answers": answers}

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        same = NORMALISATIONS[self.normalisation]
        exact, soft = np.zeros(len(kept)), np.zeros(len(kept))
        for place, (text, one) in enumerate(zip(texts, kept)):
            text, answers = same(text), [same(answer) for answer in one["answers"]]
            exact[place] = text == _most_given(answers)
            soft[place] = soft_accuracy(text, answers)
        return {"vqa_accuracy": soft, "exact_match": exact}

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        soft, exact = self.each(texts, kept).values()

        def metrics(places):
            return {
                "exact_match": float(exact[places].mean()),
                "vqa_accuracy": float(soft[places].mean()),
            }

        yield from self.with_groups(metrics, kept)
        groups = list(self.groups(kept).values())
        if not groups:
            return
        for name, values in (("exact_match", exact), ("vqa_accuracy", soft)):
            yield from _means(f"{name}_of_groups", [values[places].mean() for places in groups])
        same = NORMALISATIONS[self.normalisation]
        right = [_most_given(map(same, one["answers"])) for one in kept]
        by_answer = [_mean_by(exact[places], [right[p] for p in places]) for places in groups]
        yield from _means("exact_match_of_groups_by_answer", by_answer)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields `exact_match` and `vqa_accuracy`, see `Scoring`, both for each control, and their
    `_baseline`, which answers every question as most questions of this data that begin with the
    same two words are answered.

    Attributes:
      data: its records have `question` and `answers`.

    Raises:
      ValueError: the data has no questions, the method cannot generate, or an unknown name.
    """

    template: str = "vqa"

    def __post_init__(self):
        Scoring.__post_init__(self)
        asking.AskingEvaluator.__post_init__(self)

    def baselines(self, kept) -> Iterator[tuple[str, float]]:
        ungrouped = [{k: v for k, v in one.items() if k != "by"} for one in kept]
        for name, value in self.scores(_most_frequent(kept), ungrouped):
            yield f"{name}_baseline", value


def _most_given(answers: Iterable[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


def _means(name: str, values: Sequence[float]) -> Iterator[tuple[str, float]]:
    yield name, float(np.mean(values))
    yield (
        f"{name}_harmonic",
        float(len(values) / np.sum(1 / np.array(values))) if all(values) else 0.0,
    )


def _mean_by(values: np.ndarray, keys: Sequence[str]) -> float:
    """The mean over the keys of the mean of their values."""
    _, inverse = np.unique(keys, return_inverse=True)
    return float((np.bincount(inverse, values) / np.bincount(inverse)).mean())


def _most_frequent(kept: Sequence[asking.Kept]) -> list[str]:
    """For each question, the answer given most often to those with the same first two words."""
    counts: dict[str, Counter] = {}
    openings = [" ".join(normalise(one["question"]).split()[:2]) for one in kept]
    for opening, one in zip(openings, kept):
        counts.setdefault(opening, Counter()).update(map(normalise, one["answers"]))
    return [counts[opening].most_common(1)[0][0] for opening in openings]
