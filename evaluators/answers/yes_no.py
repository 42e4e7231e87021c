"""Questions that are answered by yes or no, such as POPE's (arXiv 2305.10355)."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from evaluators.answers.shared import asking

_NO = {"No", "no", "not"}  # and in no other case


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`accuracy`, `precision`, `recall` and `f1` of yes, and `yes_ratio`, the share of questions
    answered so, as POPE's script counts them: an answer is no where "no" or "not" is a word of its
    first sentence, and else yes. POPE's three splits are told apart with `by="category"`.
    """

    def keep(self, record) -> asking.Kept:
        """Raises ValueError where the answer is neither yes nor no."""
        answers = [str(answer).strip().lower() for answer in record.get("answers", ())]
        if set(answers) not in (set(), {"yes"}, {"no"}):
            raise ValueError(
                f"Record {record['id']!r} is answered by {answers}, not by yes or no alone; use "
                "the evaluator vqa."
            )
        return super().keep(record) | {"answers": answers[:1]}

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        right, said = _yes(texts, kept)
        return {"accuracy": np.float64(right == said)}

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        right, said = _yes(texts, kept)

        def metrics(places):
            there, found = right[places], said[places]
            hits = int(np.sum(there & found))
            return {
                "accuracy": float(np.mean(there == found)),
                "precision": hits / max(1, int(found.sum())),
                "recall": hits / max(1, int(there.sum())),
                "f1": 2 * hits / max(1, int(found.sum() + there.sum())),
                "yes_ratio": float(found.mean()),
            }

        return self.with_groups(metrics, kept)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields what `Scoring` says, all for each control, and `accuracy_baseline`, of the answer that
    is right more often.

    Attributes:
      data: its records have `question`, and `answers` which are all yes or all no.

    Raises:
      ValueError: the data has no such questions, the method cannot generate, or an unknown name.
    """

    template: str = "vqa"
    form: str = "pope"

    def baselines(self, kept) -> Iterator[tuple[str, float]]:
        share = float(np.mean([one["answers"][0] == "yes" for one in kept]))
        yield "accuracy_baseline", max(share, 1 - share)


def _yes(texts, kept) -> tuple[np.ndarray, np.ndarray]:
    """bool[N], twice: where yes is right, and where it is said."""
    right = np.array([one["answers"][0] == "yes" for one in kept])
    return right, np.array([says_yes(text) for text in texts])


def says_yes(text: str) -> bool:
    """Whether an answer is counted as a yes, see `Scoring`."""
    words = text.strip().split(".")[0].replace(",", "").split()
    return not _NO.intersection(words)
