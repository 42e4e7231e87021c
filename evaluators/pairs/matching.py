"""Two images that are much alike: does a sentence find its own, and an image its own sentence?

Winoground (arXiv 2204.03162) asks both, MMVP-VLM (arXiv 2401.06209) and SVO-Probes (arXiv
2106.09141) the first; the source `image_pairs` reads all three.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from evaluators.shared.records import captions_of
from evaluators.shared.towers import TowersEvaluator

# What a model that knows nothing gets of a pair with one sentence, and with two.
_CHANCE = {"image": (1 / 2, 1 / 4), "text": (None, 1 / 4), "group": (None, 1 / 6)}


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields `image_accuracy`: the share of pairs in which every sentence scores its own image
    above the other; where all pairs have two sentences `text_accuracy`, in which each image scores
    its own sentence above the other, and `group_accuracy`, both; and their chance.

    With several kinds of pairs also `image_accuracy_KIND` of each, and `image_accuracy_of_kinds`,
    their mean, which MMVP-VLM and SVO-Probes report. Ties and NaN count against the model.

    Attributes:
      data: two records for each `pair`, one at least with a sentence; perhaps a `kind`.
      caption_field: of the sentence.
      template: what is asked, with `{}` in the place of the sentence.

    Raises:
      ValueError: records have no `pair`, a template without `{}`, or the method lacks an encoder.
    """

    caption_field: str = "caption"
    template: str = "{}"

    def __post_init__(self):
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise ValueError(f"template={self.template!r} needs one {{}} for the sentence.")
        self._sentence_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a pair has not two images, or no sentence."""
        images, described = self.encode_images(model, self._sentence_of)
        asked = [text for _, _, text in described if text is not None]
        distinct = list(dict.fromkeys(asked))
        features = dict(zip(distinct, self.encode_texts(model, distinct) if distinct else ()))
        pairs: dict[str, list[int]] = {}
        for row, (pair, _, _) in enumerate(described):
            pairs.setdefault(pair, []).append(row)
        kinds, wins, both = [], {"image": [], "text": [], "group": []}, []
        for pair, rows in pairs.items():
            texts = [described[row][2] for row in rows]
            if len(rows) != 2 or texts == [None, None]:
                sentences = len(texts) - texts.count(None)
                raise ValueError(
                    f"Pair {pair!r} has {len(rows)} images and {sentences} sentences; it needs two "
                    "images and a sentence."
                )
            kinds.append(described[rows[0]][1])
            # s[i, j] of image i and sentence j; not `@`, whose rounding depends on the row
            s = np.full((2, 2), np.nan)
            for j, text in enumerate(texts):
                if text is not None:
                    s[:, j] = (images[rows] * features[text]).sum(axis=1)
            found = [s[j, j] > s[1 - j, j] for j, text in enumerate(texts) if text is not None]
            both.append(len(found) == 2)
            wins["image"].append(all(found))
            wins["text"].append(bool(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]))
            wins["group"].append(wins["image"][-1] and wins["text"][-1])
        yield from _metrics(kinds, wins, np.array(both))

    def _sentence_of(self, record) -> tuple[str, str, str | None]:
        """Pair, kind and what is asked of a record; None where it has no sentence."""
        if "pair" not in record:
            raise ValueError(
                f"Record {record['id']!r} is of no pair; use data of image pairs (source "
                "'image_pairs')."
            )
        text = None
        if record["captions"]:
            text = self.template.replace("{}", captions_of(record, self.caption_field)[0])
        return str(record["pair"]), str(record.get("kind", "")), text


def _metrics(kinds, wins, both) -> Iterator[tuple[str, float]]:
    names = ("image", "text", "group") if both.all() else ("image",)
    for name in names:
        yield f"{name}_accuracy", float(np.mean(wins[name]))
        one, two = _CHANCE[name]
        yield f"{name}_accuracy_chance", float(np.mean(np.where(both, two, one or two)))
    by_kind: dict[str, list[bool]] = {}
    for kind, won in zip(kinds, wins["image"]):
        by_kind.setdefault(kind, []).append(won)
    if len(by_kind) > 1:
        yield "image_accuracy_of_kinds", float(np.mean([np.mean(won) for won in by_kind.values()]))
        for kind, won in by_kind.items():
            yield f"image_accuracy_{kind.lower().replace(' ', '_')}", float(np.mean(won))
