"""Hard negatives: does an image score its true caption above captions with one detail wrong?

Unlike retrieval, this cannot be won by recognising which things are in the image.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from evaluators.shared.records import captions_of
from evaluators.shared.towers import TowersEvaluator


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields `accuracy`, `pairwise_accuracy` and, beside each, its chance.

    `accuracy` is the share of images whose true caption scores strictly above all their hard
    negatives, `pairwise_accuracy` the share of (caption, negative) pairs in the right order. Ties
    and NaN count against the model. Records without `hard_negatives` are left out. Where records
    are of kinds (SugarCrepe's seven) also `accuracy_KIND` of each, and `accuracy_of_kinds`, their
    mean.

    Attributes:
      data: its records have `hard_negatives`.
      caption_field: its first string is the caption that the negatives are variants of.

    Raises:
      ValueError: the data has no such field, or the method lacks an encoder.
    """

    caption_field: str = "caption"

    def __post_init__(self):
        super().__post_init__()
        self._candidates(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where no record has hard negatives."""
        images, described = self.encode_images(model, self._kind_and_candidates)
        kinds, candidates = zip(*described)
        if not any(candidates):
            raise ValueError(
                "No record of this source has hard_negatives; remove the evaluator or choose data "
                "that has them."
            )
        flat = [text for own in candidates for text in own]
        distinct = list(dict.fromkeys(flat))
        features = dict(zip(distinct, self.encode_texts(model, distinct)))

        wins, by_kind = [], {}  # per image: bool[negatives]
        for image, kind, own in zip(images, kinds, candidates):
            if own:
                products = np.stack([features[text] for text in own]) * image
                scores = products.sum(axis=1)  # not `@`, whose rounding depends on the row
                wins.append(scores[0] > scores[1:])
                by_kind.setdefault(kind, []).append(wins[-1].all())
        yield "accuracy", float(np.mean([won.all() for won in wins]))
        yield "pairwise_accuracy", float(np.mean(np.concatenate(wins)))
        yield "accuracy_chance", float(np.mean([1 / (1 + len(won)) for won in wins]))
        yield "pairwise_accuracy_chance", 0.5
        if any(by_kind):
            yield "accuracy_of_kinds", float(np.mean([np.mean(won) for won in by_kind.values()]))
            for kind, won in by_kind.items():
                yield f"accuracy_{kind}", float(np.mean(won))

    def _kind_and_candidates(self, record) -> tuple[str, list[str]]:
        return str(record.get("kind", "")), self._candidates(record)

    def _candidates(self, record) -> list[str]:
        """The true caption and then its hard negatives; empty where the record has none."""
        negatives = list(record.get("hard_negatives", ()))
        if not negatives:
            return []
        caption = captions_of(record, self.caption_field)[0]
        if caption in negatives:
            raise ValueError(
                f"Record {record['id']!r} lists its true caption {caption!r} as a hard negative."
            )
        return [caption, *negatives]
