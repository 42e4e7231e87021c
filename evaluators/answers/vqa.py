"""Visual question answering: generated answers against those of people."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

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
    group's is.

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
            exact[place] = text == Counter(answers).most_common(1)[0][0]
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
        groups = self.groups(kept)
        if groups:
            for name, values in (("exact_match", exact), ("vqa_accuracy", soft)):
                means = np.array([values[places].mean() for places in groups.values()])
                yield f"{name}_of_groups", float(means.mean())
                harmonic = len(means) / np.sum(1 / means) if means.all() else 0.0
                yield f"{name}_of_groups_harmonic", float(harmonic)


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


def _most_frequent(kept: Sequence[asking.Kept]) -> list[str]:
    """For each question, the answer given most often to those with the same first two words."""
    counts: dict[str, Counter] = {}
    openings = [" ".join(normalise(one["question"]).split()[:2]) for one in kept]
    for opening, one in zip(openings, kept):
        counts.setdefault(opening, Counter()).update(map(normalise, one["answers"]))
    return [counts[opening].most_common(1)[0][0] for opening in openings]
