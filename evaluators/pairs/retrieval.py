"""Image-to-text and text-to-image retrieval over one data set: R@k, mean and median rank.

Follows the reference implementation of COSMOS (arXiv 2412.01814): recalls are fractions, an
image's rank is the best rank among its captions, mean rank counts from 1, the median is rounded
down. Ties and NaN count against the model, which is stricter. Where several images carry the same
caption string, each of them is a right answer for it, which is more lenient: `equal_captions` has
the rule of the reference too.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from big_vlp.parallel import meshes
from evaluators.shared.ranking import hits, ranks
from evaluators.shared.records import captions_of
from evaluators.shared.rows import RowMap, replicate
from evaluators.shared.towers import TowersEvaluator

RECALL_AT = (1, 5, 10)
EQUAL_CAPTIONS = ("shared", "reference")
# Scores held at once on a device: 64 MiB in float32, however large the data set.
SCORES_PER_DEVICE = 2**24


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields `{image_to_text,text_to_image}_{R@1,R@5,R@10,mean_rank,median_rank,R@k_chance}` and
    `mean_R@1` of both directions, with its chance.

    Attributes:
      caption_field: whose captions are searched; any number per image.
      equal_captions: "shared": a caption is right for every image that carries this very string.
        "reference": only for its own image, as in the code of COSMOS and CLIP; two equal ones
        then tie.

    Raises:
      ValueError: the data has no such field, the method lacks an encoder, or an unknown rule.
    """

    caption_field: str
    equal_captions: str = "shared"

    def __post_init__(self):
        super().__post_init__()
        if self.equal_captions not in EQUAL_CAPTIONS:
            raise ValueError(
                f"equal_captions={self.equal_captions!r}; choose one of {EQUAL_CAPTIONS}."
            )
        self._rank = RowMap(_rank_features, self.mesh)
        captions_of(self.source[0], self.caption_field)  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        images, captions = self.encode_images(
            model, lambda record: captions_of(record, self.caption_field)
        )
        pairs = Pairs(captions)
        texts = self.encode_texts(model, pairs.texts)
        if self.equal_captions == "reference":
            # Each caption a candidate of its own, all with the one feature of its string.
            texts, pairs = texts[pairs.text_of], Pairs(_numbered(captions))
        one_each = np.ones(len(images), np.int32)
        yield from _metrics(
            pairs,
            self._ranks(images, texts, pairs.texts_of, pairs.copies),
            self._ranks(texts, images, pairs.images_of, one_each),
        )

    def _ranks(self, queries, candidates, right, weight) -> np.ndarray:
        def load(row):
            return {"feature": queries[row], "positive": _one_hot(right[row], len(candidates))}

        rows = max(1, SCORES_PER_DEVICE // len(candidates)) * meshes.batch_parts(self.mesh)
        params = replicate((candidates, weight), self.mesh)
        return self._rank(params, load, len(queries), rows)


class Pairs:
    """Which captions are right for which images.

    Equal strings are one text that stands for several captions: encoded once, and right for every
    image that carries it.

    Attributes:
      texts: the U distinct captions, in order of appearance.
      copies: i32[U], how many captions are this text.
      text_of: i32[T], the text of every caption.
      texts_of: for every image, its texts (ascending).
      images_of: for every text, the images that carry it (ascending).
    """

    def __init__(self, captions: Sequence[Sequence[str]]):
        flat = [caption for own in captions for caption in own]
        self.texts = list(dict.fromkeys(flat))
        index = {text: u for u, text in enumerate(self.texts)}
        self.text_of = np.array([index[caption] for caption in flat], np.int32)
        self.copies = np.bincount(self.text_of, minlength=len(index)).astype(np.int32)
        self.texts_of = [sorted({index[caption] for caption in own}) for own in captions]
        self.images_of = [[] for _ in self.texts]
        for image, own in enumerate(self.texts_of):
            for text in own:
                self.images_of[text].append(image)


def _numbered(captions: Sequence[Sequence]) -> list[list[str]]:
    """In the place of each caption a string that no other has."""
    numbers = itertools.count()
    return [[str(next(numbers)) for _ in own] for own in captions]


def _rank_features(params, batch):
    candidates, weight = params
    # Full precision: the default on TPU (bfloat16) would make ties out of close scores.
    scores = jnp.matmul(batch["feature"], candidates.T, precision="highest")
    return ranks(scores, batch["positive"], weight)


def _metrics(pairs: Pairs, image_ranks, text_ranks) -> Iterator[tuple[str, float]]:
    """Summarises i32[I] ranks of the images' captions and i32[U] of the texts' images."""
    num_images, num_captions = len(image_ranks), len(pairs.text_of)
    right_captions = np.array([pairs.copies[texts].sum() for texts in pairs.texts_of])
    right_images = np.array([len(images) for images in pairs.images_of])
    first = []
    for direction, rank, num_right, candidates in (
        ("image_to_text", image_ranks, right_captions, num_captions),
        ("text_to_image", text_ranks[pairs.text_of], right_images[pairs.text_of], num_images),
    ):
        for k in RECALL_AT:
            yield f"{direction}_R@{k}", float(np.mean(hits(rank, k, candidates)))
        yield f"{direction}_mean_rank", float(np.mean(rank)) + 1
        yield f"{direction}_median_rank", float(np.floor(np.median(rank))) + 1
        for k in RECALL_AT:
            yield f"{direction}_R@{k}_chance", _chance(num_right, k, candidates)
        first.append((np.mean(hits(rank, 1, candidates)), _chance(num_right, 1, candidates)))
    for name, values in zip(("mean_R@1", "mean_R@1_chance"), zip(*first)):
        yield name, float(np.mean(values))


def _chance(num_right: np.ndarray, k: int, candidates: int) -> float:
    """Expected R@k of a random order: 1 - C(N - p, k) / C(N, k) with p right ones among N."""
    k = min(k, candidates)
    by_count = {
        p: 1 - math.comb(candidates - p, k) / math.comb(candidates, k)
        for p in set(num_right.tolist())
    }
    return float(np.mean([by_count[p] for p in num_right.tolist()]))


def _one_hot(indices: Sequence[int], length: int) -> np.ndarray:
    row = np.zeros(length, bool)
    row[indices] = True
    return row
