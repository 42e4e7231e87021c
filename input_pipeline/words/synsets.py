"""The nouns of WordNet 3.0: from a word to the synset that CatLIP labels an image with, and paths.

A synset's key is "n" and its offset in data.noun without leading zeros, e.g. "n2084071" for
dog.n.01 (CatLIP, arXiv 2404.15653, and its released code; ImageNet writes n02084071). Other
releases of WordNet have other offsets. `data/make_wordnet_nouns.py` describes the table.
"""

import functools
import gzip
import hashlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

VERSION = "3.0"

_TABLE = Path(__file__).parents[1] / "data" / "wordnet_nouns.txt.gz"
_ENDINGS = (
    *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
    *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
)
# Longer tokens are no nouns. The longest lemma has 71 characters; a plural may lose many an s, and
# would take time that grows with the square of its length.
_LONGEST = 300


@functools.cache
def load() -> "Nouns":
    """The table, read once per process: about a third of a second."""
    return Nouns(_TABLE)


class Nouns:
    """Lemmas, names and hypernyms of the 82,115 noun synsets of WordNet 3.0."""

    def __init__(self, path: Path):
        data = gzip.decompress(path.read_bytes())
        self.checksum = hashlib.sha256(data).hexdigest()[:16]
        synsets, exceptions = data.decode("ascii").split("\n\n")
        self._exceptions: dict[str, list[str]] = {}
        for line in exceptions.splitlines():
            form, *bases = line.split()
            self._exceptions[form] = bases
        # Lemma -> key of its first sense if that synset is named after it, else None.
        self._keys: dict[str, str | None] = {}
        # Lemma -> keys of its senses that the table knows: the first, and those named after it.
        self._senses: dict[str, list[str]] = {}
        self._names: list[str] = []
        self._rows: dict[str, int] = {}
        self._above: list[str] = []
        self._candidates: tuple[str, ...] = ()
        for line in synsets.splitlines():
            if line.startswith("#"):
                continue
            offset, name, others, above = line.split("\t")
            key = "n" + offset
            self._rows[key] = len(self._names)
            self._names.append(name)
            self._above.append(above)
            for lemma in others.split():
                self._keys[lemma] = None
                self._senses.setdefault(lemma, []).insert(0, key)
            lemma, sense = name.split()
            if sense == "1":
                self._keys[lemma] = key
            senses = self._senses.setdefault(lemma, [])
            senses.insert(0 if sense == "1" else len(senses), key)

    def __len__(self) -> int:
        """Number of synsets."""
        return len(self._names)

    def __iter__(self):
        """The keys of all synsets."""
        return iter(self._rows)

    def __contains__(self, key: str) -> bool:
        """Whether a synset has this key."""
        return key in self._rows

    def has_lemma(self, lemma: str) -> bool:
        """Whether a synset has this lemma; the words of a compound have "_" between them."""
        return lemma in self._keys

    def lemmatise(self, token: str) -> str:
        """The shortest lemma that `token` can be a form of, or `token` if there is none.

        Irregular forms come from the table, others from taking plural endings off. Among lemmas of
        one length the first wins. Shortest is not best: "glasses" is "glass", "jeans" is "jean".
        """
        lemmas = self._lemmas(token)
        return min(lemmas, key=len) if lemmas else token

    def _lemmas(self, token: str) -> list[str]:
        if len(token) > _LONGEST:
            return []
        if token in self._exceptions:
            return self._known([token, *self._exceptions[token]])
        forms = _without_ending([token])
        lemmas = self._known([token, *forms])
        while forms and not lemmas:
            forms = _without_ending(forms)
            lemmas = self._known(forms)
        return lemmas

    def _known(self, forms: list[str]) -> list[str]:
        return [form for form in forms if form in self._keys]

    def key_of(self, token: str) -> str | None:
        """Key of the synset that a lower-case token stands for, or None.

        It is the first sense of the token's lemma, and only if the synset is named after that very
        lemma: "couch" gives None, since its synset is named sofa.
        """
        return self._keys.get(self.lemmatise(token))

    def senses(self, token: str) -> list[str]:
        """Keys of the senses of a lower-case token's lemma: the first one, whatever its synset is
        named after, and all others whose synset is named after the lemma; none of other words."""
        return self._senses.get(self.lemmatise(token), [])

    def name(self, key: str) -> str:
        """Name of a synset, e.g. "dog.n.01".

        Raises:
          ValueError: no synset has this key.
        """
        word, sense = self._names[self._row(key)].split()
        return f"{word}.n.{int(sense):02d}"

    def is_below(self, key: str, above: str) -> bool:
        """Whether a synset is the other one or has it among its hypernyms.

        Raises:
          ValueError: no synset has one of the keys.
        """
        return self._row(above) in self._ancestors(self._row(key))

    def path_distance(self, first: str, second: str) -> int:
        """Links on the shortest way from one synset up to a common hypernym and down to the other.

        Instance hypernyms count as hypernyms. All nouns meet in entity.n.01 at the latest.

        Raises:
          ValueError: no synset has one of the keys.
        """
        up, down = self._ancestors(self._row(first)), self._ancestors(self._row(second))
        return min(up[row] + down[row] for row in up.keys() & down.keys())

    def path_similarity(self, first: str, second: str) -> float:
        """1 / (1 + path_distance), in (0, 1]."""
        return 1 / (1 + self.path_distance(first, second))

    def nearest(self, key: str, candidates: Sequence[str]) -> tuple[str, float]:
        """The candidate of the highest path similarity to `key`, the first of equal ones.

        Args:
          candidates: keys. The first call with 24,000 takes a tenth of a second; every other, while
            they are the same, a millisecond.

        Returns:
          (candidate, similarity).

        Raises:
          ValueError: there are no candidates, or no synset has one of the keys.
        """
        if not candidates:
            raise ValueError("nearest: there are no candidates.")
        row, candidates = self._row(key), tuple(candidates)
        if candidates != self._candidates:
            # All that lies above a candidate: (links down to its nearest one, rank of that one).
            self._below = self._climb([self._row(candidate) for candidate in candidates])
            self._candidates = candidates
        below = self._below
        distance, rank = min(
            (up + below[ancestor][0], below[ancestor][1])
            for ancestor, up in self._ancestors(row).items()
            if ancestor in below
        )
        return candidates[rank], 1 / (1 + distance)

    def _row(self, key: str) -> int:
        try:
            return self._rows[key]
        except (KeyError, TypeError):
            raise ValueError(
                f"{key!r} is not the key of a noun synset of WordNet {VERSION}."
            ) from None

    @functools.cached_property
    def _parents(self) -> list[list[int]]:
        return [[int(row) for row in above.split()] for above in self._above]

    def _ancestors(self, row: int) -> dict[int, int]:
        """Synset and all above it -> links up to there, the fewest."""
        return {above: distance for above, (distance, _) in self._climb([row]).items()}

    def _climb(self, starts: list[int]) -> dict[int, tuple[int, int]]:
        """Row -> (links from the nearest start up to it, position of that start).

        Breadth first from all starts at once. The queue holds the starts in their order, and so
        does every level after them: of equally near starts, the first arrives first.
        """
        found: dict[int, tuple[int, int]] = {}
        queue = deque((row, 0, rank) for rank, row in enumerate(starts))
        while queue:
            row, distance, rank = queue.popleft()
            if row not in found:
                found[row] = distance, rank
                queue.extend((above, distance + 1, rank) for above in self._parents[row])
        return found


def _without_ending(forms: list[str]) -> list[str]:
    return [
        form.removesuffix(old) + new
        for form in forms
        for old, new in _ENDINGS
        if form.endswith(old)
    ]
