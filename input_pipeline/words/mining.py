"""Captions -> keys of WordNet synsets, the labels of CatLIP (arXiv 2404.15653, section 3).

A caption is cleaned, split into words, and each word that stands for a synset gives its key. The
released code tags parts of speech and then ignores them, so that "black" and "free" are labels;
equation 1 of the paper keeps nouns only. Both are offered as modes.
"""

import functools
import re
from typing import Any
from urllib.parse import unquote

import ftfy

from input_pipeline.words import synsets, tagging
from input_pipeline.words.tokens import Memo, Tokeniser, tokenise

MODES = ("released", "paper")

_SPACES = re.compile(" {2,}")
# A tag ends on its line. Where none ends, nothing after it on the line begins one.
_TAG = re.compile(r"<[^>\n]*(>?)")
# ftfy and the rules before it leave printable ASCII without these as it is.
_SPECIAL = re.compile(r"[^ -~]|[%+<&]")


class LabelMiner:
    """Finds the synsets that a caption names.

    Cheap to construct and to pickle; what it learns about words stays in the process.

    Args:
      mode: "released", every word, as in CatLIP's code and the vocabulary published with it; or
        "paper", only words tagged as nouns. The authors' tagger is not available as a package:
        TextBlob's takes its place (98 % precision and recall against it on 145 captions).

    Raises:
      ValueError: another mode, or "paper" without TextBlob.
    """

    def __init__(self, mode: str = "released"):
        if mode not in MODES:
            raise ValueError(f"Unknown label mode {mode!r}; choose one of {list(MODES)}.")
        if mode == "paper":
            tagging.check("Label mode 'paper'")
        self.mode = mode
        self._tokens = Tokeniser()
        self._keys = Memo(_key_of)

    def __reduce__(self):
        return LabelMiner, (self.mode,)

    def keys(self, caption: Any) -> list[str]:
        """Keys in the order of the words, one for every occurrence.

        Args:
          caption: a string. Anything else counts as what `str` makes of it, as it does in CatLIP's
            code: of a list, its brackets and quotes too.
        """
        tokens = self._tokens(clean(caption))
        if self.mode == "paper":
            tokens = _nouns(tokens)
        known = self._keys
        return [key for key in [known[token] for token in tokens] if key]


@functools.cache
def kept_miner(mode: str) -> LabelMiner:
    """One for the whole process: one memory of words."""
    return LabelMiner(mode)


def clean(caption: Any) -> str:
    """The caption as it is split into words: decoded, without tags, mended, in lower case."""
    text = str(caption)
    if _SPECIAL.search(text):
        return clean_anything(text)
    if "  " in text:
        text = _SPACES.sub(" ", text)
    return text.strip(" ").lower()


def clean_anything(text: str) -> str:
    """`clean` without the short cut for plain text. The order matters."""
    text = unquote(text).replace("+", " ")
    text = _TAG.sub(lambda match: "" if match[1] else match[0], text).strip("\n")
    return ftfy.fix_text(_SPACES.sub(" ", text)).strip().lower()


def keys_plainly(caption: Any) -> list[str]:
    """What `LabelMiner("released").keys` returns, without any short cut: the definition."""
    tokens = tokenise(clean_anything(str(caption)))
    return [key for key in map(_key_of, tokens) if key]


def _key_of(token: str) -> str | None:
    return synsets.load().key_of(token)


def _nouns(tokens: list[str]) -> list[str]:
    return [token for token, tag in tagging.tag(tokens) if tag.startswith("NN")]
