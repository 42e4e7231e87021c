"""What rules want to know of captions, for many at once: f64[rows], NaN where there is no caption.

Two ways to take a text apart: *fields* are what white space separates, as in `prepare`; *words* are
runs of letters, marks and digits of any script, in lower case and compatibility form (NFKC), so
that "Sale!" and "SALE" are one.
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BLANK = pa.scalar(" ", pa.large_string())
_LETTERS = r"\p{L}\p{M}"
_OTHER, _NO_LETTER, _SPACE = (
    rf"[^{_LETTERS}\p{{N}}]+",
    rf"[^{_LETTERS}]+",
    r"[\s\v\x1c-\x1f\x{85}\pZ]+",
)


def characters(text: pa.Array) -> np.ndarray:
    """Code points."""
    return _floats(pc.utf8_length(text))


def fields(text: pa.Array) -> np.ndarray:
    """Number of fields; texts have no white space at their ends, and are not empty."""
    return _floats(pc.list_value_length(pc.utf8_split_whitespace(text)))


def letters(text: pa.Array) -> np.ndarray:
    """Share of letters (and their marks) in the characters that are no white space."""
    found = pc.utf8_length(pc.replace_substring_regex(text, _NO_LETTER, ""))
    return _floats(found) / _floats(pc.utf8_length(pc.replace_substring_regex(text, _SPACE, "")))


class Words:
    """The words of texts.

    Attributes:
      words: large strings, those of all texts behind each other.
      texts: i64[words]: the text that each belongs to, ascending.
      count: number of texts.
    """

    def __init__(self, text: pa.Array):
        plain = pc.utf8_lower(pc.utf8_normalize(text, "NFKC"))
        plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, _OTHER, " "))
        plain = pc.if_else(pc.equal(pc.binary_length(plain), 0), None, plain)
        lists = pc.utf8_split_whitespace(plain)
        self.words = pc.list_flatten(lists)
        self.texts = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        self.count, self._missing = len(text), pc.is_null(text).to_numpy(zero_copy_only=False)

    def repeated(self) -> np.ndarray:
        """Share of the words of a text that were there before in it."""
        encoded = self.words.dictionary_encode()
        size = max(1, len(encoded.dictionary))
        each = np.unique(self.texts * size + encoded.indices.to_numpy(zero_copy_only=False))
        different = np.bincount(each // size, minlength=self.count)
        words = np.bincount(self.texts, minlength=self.count)
        return self._known((words - different) / np.maximum(words, 1))

    def listed(self, phrases: Mapping[int, pa.Array]) -> np.ndarray:
        """How often phrases of a list occur in each text; `phrases` as `by_length` gives them."""
        found = np.zeros(self.count)
        for length, known in phrases.items():
            if len(self.words) < length:
                continue
            ends = len(self.words) - length + 1
            parts = [self.words.slice(i, ends) for i in range(length)]
            runs = pc.binary_join_element_wise(*parts, _BLANK) if length > 1 else parts[0]
            hits = pc.is_in(runs, known).to_numpy(zero_copy_only=False)
            hits &= self.texts[:ends] == self.texts[length - 1 :]
            found += np.bincount(self.texts[:ends][hits], minlength=self.count)
        return self._known(found)

    def _known(self, values: np.ndarray) -> np.ndarray:
        return np.where(self._missing, np.nan, values)


def by_length(phrases: Iterable[str]) -> dict[int, pa.Array]:
    """Number of words -> the phrases of so many, as large strings; those without any are left
    out."""
    found: dict[int, set[str]] = {}
    for phrase in phrases:
        words = Words(pa.array([phrase], pa.large_string())).words.to_pylist()
        if words:
            found.setdefault(len(words), set()).add(" ".join(words))
    return {n: pa.array(sorted(found[n]), pa.large_string()) for n in sorted(found)}


def hashes(text: pa.Array) -> np.ndarray:
    """u64[texts], of the text to the letter; 0 where there is none."""
    digests = (
        b"\0" * 8 if t is None else hashlib.blake2b(t.encode(), digest_size=8).digest()
        for t in text.to_pylist()
    )
    return np.frombuffer(b"".join(digests), "<u8")


def _floats(counts: pa.Array) -> np.ndarray:
    return pc.cast(counts, pa.float64()).to_numpy(zero_copy_only=False)
