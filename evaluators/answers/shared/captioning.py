"""Scores of captions against those of people, as COCO's evaluation (arXiv 1504.00325) counts them.

All take captions as lists of words, see `shared.ptb`, and give what `pycocoevalcap` 1.2 gives.
"""

import functools
import math
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np

Words = Sequence[str]
MAX_N = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2
_TINY, _SMALL = 1e-15, 1e-9  # of BLEU, for captions without words


def cider_d(written: Sequence[Words], given: Sequence[Sequence[Words]]) -> np.ndarray:
    """f64[N], of each image: CIDEr-D (arXiv 1411.5726), 10 at most; its mean is what is reported.

    How rare an n-gram is, is counted over the images' given captions: a score depends on all images
    that are scored together. Lengths are compared in pairs of words, as the published code does.

    Args:
      written: a caption of each of N images.
      given: the captions of people, one at least of each.
    """
    grams = [[_grams(words) for words in _all_parted(captions)] for captions in given]
    frequency = Counter(gram for captions in grams for gram in set().union(*captions))
    rarity = _Rarity(math.log(len(given)), frequency)
    scores = []
    for words, captions in zip(written, grams):
        own = _Weighted(_grams(_parted(words)), rarity)
        similar = [own.similarity(_Weighted(counts, rarity)) for counts in captions]
        scores.append(10 * np.mean(similar))
    return np.array(scores)


def bleu(written: Sequence[Words], given: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of all images together, each against its closest length."""
    hits, tries = np.zeros(MAX_N), np.zeros(MAX_N)
    length = given_length = 0
    for words, captions in zip(map(_parted, written), map(_all_parted, given)):
        counts = _grams(words)
        most: Counter = Counter()
        for caption in captions:
            most |= _grams(caption)
        for gram, count in counts.items():
            hits[len(gram) - 1] += min(count, most[gram])
        tries += [max(0, len(words) - n) for n in range(MAX_N)]
        length += len(words)
        given_length += min((abs(len(c) - len(words)), len(c)) for c in captions)[1]
    ratio = (length + _TINY) / (given_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    shares = np.cumprod((hits + _TINY) / (tries + _SMALL))
    return [float(share ** (1 / n) * brevity) for n, share in enumerate(shares, 1)]


def rouge_l(written: Sequence[Words], given: Sequence[Sequence[Words]]) -> np.ndarray:
    """f64[N], of each image: ROUGE-L by its best precision and its best recall."""
    return np.array([_rouge(words, captions) for words, captions in zip(written, given)])


@functools.cache
def has_meteor() -> bool:
    """Whether METEOR can be counted: by `pycocoevalcap`, which starts Java."""
    try:
        from pycocoevalcap.meteor import meteor  # noqa: F401
    except ImportError:
        return False
    return shutil.which("java") is not None


def meteor(written: Sequence[Words], given: Sequence[Sequence[Words]]) -> float:
    """METEOR of all images together; where `has_meteor`."""
    from pycocoevalcap.meteor.meteor import Meteor

    own = {i: [" ".join(words)] for i, words in enumerate(written)}
    people = {i: [" ".join(words) for words in captions] for i, captions in enumerate(given)}
    return float(Meteor().compute_score(people, own)[0])


def _parted(words: Words) -> list[str]:
    """Words with a no-break space, such as "1 1/2", are two to CIDEr and BLEU, and one to ROUGE."""
    return " ".join(words).split()


def _all_parted(captions: Sequence[Words]) -> list[list[str]]:
    return [_parted(words) for words in captions]


def _grams(words: Words) -> Counter:
    """How often each tuple of 1 to MAX_N words in a row stands there."""
    return Counter(
        tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1)
    )


class _Rarity:
    def __init__(self, log_images: float, frequency: Counter):
        self._log_images, self._frequency = log_images, frequency

    def __call__(self, gram: tuple) -> float:
        return self._log_images - math.log(max(1, self._frequency[gram]))


class _Weighted:
    """A caption's n-grams weighted by how rare they are, with the vectors' norms for each n."""

    def __init__(self, counts: Counter, rarity: _Rarity):
        self._weights = {gram: count * rarity(gram) for gram, count in counts.items()}
        self._length = sum(count for gram, count in counts.items() if len(gram) == 2)
        squares = np.zeros(MAX_N)
        for gram, weight in self._weights.items():
            squares[len(gram) - 1] += weight**2
        self._norms = np.sqrt(squares)

    def similarity(self, given: "_Weighted") -> float:
        products = np.zeros(MAX_N)
        for gram, weight in self._weights.items():
            there = given._weights.get(gram, 0.0)
            products[len(gram) - 1] += min(weight, there) * there
        norms = self._norms * given._norms
        cosines = products / np.where(norms > 0, norms, 1)
        difference = self._length - given._length
        return float(cosines.mean() * math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2)))


def _rouge(words: Words, captions: Sequence[Words]) -> float:
    words = words or [""]  # as the published code counts a caption without words
    captions = [caption or [""] for caption in captions]
    common = [_common(words, caption) for caption in captions]
    precision = max(common) / len(words)
    recall = max(count / len(caption) for count, caption in zip(common, captions))
    if not precision:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        last = 0
        for i, other in enumerate(b, 1):
            last, row[i] = row[i], last + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]
