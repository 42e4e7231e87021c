"""Captioning: what a model writes about images against captions by people."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from evaluators.answers.shared import asking, captioning, ptb
from evaluators.shared.records import captions_of


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`cider` (CIDEr-D, 10 at most), `bleu_1` to `bleu_4`, `rouge_l` as COCO's evaluation counts
    them, and `meteor` where `pycocoevalcap` and Java are there.

    With `by`, such as NoCaps' domain, a group is scored as if there were no other: how rare words
    are is counted within it.

    Attributes:
      caption_field: the captions of people.
      prompt: what is asked; nothing, as in pretraining.
    """

    caption_field: str = "caption"
    prompt: str = ""

    wanted = "captions"
    right = None

    def query(self, record) -> str:
        return self.prompt

    def keep(self, record) -> asking.Kept:
        captions = captions_of(record, self.caption_field) if record.get("captions") else []
        return super().keep(record) | {"answers": captions}

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        written, given = _words(texts, kept)
        cider = captioning.cider_d(written, given)
        return {"cider": cider, "rouge_l": captioning.rouge_l(written, given)}

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        written, given = _words(texts, kept)
        rouge = captioning.rouge_l(written, given)

        def metrics(places: np.ndarray) -> dict[str, float]:
            some = [written[place] for place in places], [given[place] for place in places]
            found = {"cider": float(captioning.cider_d(*some).mean())}
            found |= {f"bleu_{n}": value for n, value in enumerate(captioning.bleu(*some), 1)}
            found["rouge_l"] = float(rouge[places].mean())
            if captioning.has_meteor():
                found["meteor"] = captioning.meteor(*some)
            return found

        return self.with_groups(metrics, kept)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields what `Scoring` says, all for each control.

    Attributes:
      data: its records have `captions`.

    Raises:
      ValueError: the data has no such captions, the method cannot generate, or an unknown name.
    """

    template: str = "base"
    form: str = "coco"


def _words(texts, kept) -> tuple[list, list]:
    """What is written, and what people wrote, as `captioning` takes them."""
    flat = iter(ptb.tokenize([text for one in kept for text in one["answers"]]))
    given = [[next(flat) for _ in one["answers"]] for one in kept]
    return ptb.tokenize(texts), given
