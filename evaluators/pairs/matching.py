"""Two images that are much alike: does a sentence find its own, and an image its own sentence?

Winoground (arXiv 2204.03162) asks both, MMVP-VLM (arXiv 2401.06209) the first. SVO-Probes (arXiv
2106.09141) is asked so here, too, as later work does; its paper scores each image and sentence by
itself, which a model without a classifier of matches cannot: numbers of the two are not to be
compared. The source `image_pairs` reads all three.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from evaluators.shared.towers import TowersEvaluator

# What a model that knows nothing gets of a pair with one sentence, and with two.
_CHANCE = {"image": (1 / 2, 1 / 4), "text": (None, 1 / 4), "group": (None, 1 / 6)}


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields `image_accuracy`: the share of pairs in which every sentence scores its own image
    above the other; where all pairs have two sentences `text_accuracy`, in which each image scores
    its own sentence above the other, and `group_accuracy`, both; and their chance.

    Where pairs are of kinds also `image_accuracy_KIND` of each, and `image_accuracy_of_kinds`,
    their mean. Ties and NaN count against the model. Pairs without both images, of which one was
    not to be had, are left out: `pairs` counts the others, `pairs_left_out` these.

    Attributes:
      data: images with `pairs`, see the source `image_pairs`.
      template: what is asked, with `{}` in the place of the sentence.

    Raises:
      ValueError: records have no `pairs`, a template without `{}`, or the method lacks an encoder.
    """

    template: str = "{}"

    def __post_init__(self):
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise ValueError(f"template={self.template!r} needs one {{}} for the sentence.")
        _pairs_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where no pair is whole."""
        images, described = self.encode_images(model, _pairs_of)
        sides: dict[str, list[tuple]] = {}  # pair -> (row, kind, sentence) of both images
        for row, own in enumerate(described):
            for pair, kind, sentence in own:
                sides.setdefault(pair, []).append((row, kind, sentence))
        whole = [both for both in sides.values() if len(both) == 2 and (both[0][2] or both[1][2])]
        if not whole:
            raise ValueError(
                f"None of the {len(sides)} pairs of this source has two images and a sentence."
            )
        texts = {s: self.template.replace("{}", s) for both in whole for *_, s in both if s}
        features = dict(zip(texts, self.encode_texts(model, list(texts.values()))))
        wins: dict[str, list[bool]] = {"image": [], "text": [], "group": []}
        for both in whole:
            rows, sentences = [row for row, *_ in both], [sentence for *_, sentence in both]
            # s[i, j] of image i and sentence j; not `@`, whose rounding depends on the row
            s = np.full((2, 2), np.nan)
            for j, sentence in enumerate(sentences):
                if sentence:
                    s[:, j] = (images[rows] * features[sentence]).sum(axis=1)
            won = [s[j, j] > s[1 - j, j] for j, sentence in enumerate(sentences) if sentence]
            wins["image"].append(all(won))
            wins["text"].append(bool(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]))
            wins["group"].append(wins["image"][-1] and wins["text"][-1])
        two = np.array([bool(a[2] and b[2]) for a, b in whole])
        yield from _metrics([both[0][1] for both in whole], wins, two)
        yield "pairs", len(whole)
        yield "pairs_left_out", len(sides) - len(whole)


def _pairs_of(record) -> Sequence[tuple[str, str, str | None]]:
    """Name, kind and sentence of each pair that a record's image is in; the sentence is that of
    this image, or None."""
    try:
        return [(str(x["pair"]), str(x["kind"]), x["sentence"]) for x in record["pairs"]]
    except (KeyError, TypeError):
        raise ValueError(
            f"Record {record['id']!r} is of no pair; use data of image pairs (source "
            "'image_pairs')."
        ) from None


def _metrics(kinds, wins, two) -> Iterator[tuple[str, float]]:
    for name in ("image", "text", "group") if two.all() else ("image",):
        yield f"{name}_accuracy", float(np.mean(wins[name]))
        of_one, of_two = _CHANCE[name]
        yield f"{name}_accuracy_chance", float(np.mean(np.where(two, of_two, of_one or of_two)))
    by_kind: dict[str, list[bool]] = {}
    for kind, won in zip(kinds, wins["image"]):
        by_kind.setdefault(kind, []).append(won)
    if any(by_kind):
        yield "image_accuracy_of_kinds", float(np.mean([np.mean(won) for won in by_kind.values()]))
        for kind, won in by_kind.items():
            yield f"image_accuracy_{kind.lower().replace(' ', '_')}", float(np.mean(won))
