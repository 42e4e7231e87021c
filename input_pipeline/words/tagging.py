"""Parts of speech, by TextBlob's tagger: an extra, which is imported where it is first used."""

import functools
import importlib.util
from collections.abc import Sequence


def check(what: str) -> None:
    """Raises ValueError unless there is a tagger; `what` needs it."""
    if importlib.util.find_spec("textblob") is None:
        raise ValueError(f"{what} needs a part-of-speech tagger: pip install 'big_vlp[pos]'.")


def tag(words: Sequence[str]) -> list[tuple[str, str]]:
    """(word, tag of the Penn Treebank) of the words of a text."""
    return _parser().find_tags(words)


@functools.lru_cache(maxsize=100_000)
def is_verb(word: str) -> bool:
    """Whether a lower-case word may be a verb's base form, its third person or its -ing form.

    The tagger's lexicon has one tag for each word, and "drink" is a noun there: a word counts as a
    verb, too, if it also has the verb's past form or -ing form.
    """
    lexicon = _parser().lexicon
    for base in _bases(word):
        if lexicon.get(base) in ("VB", "VBP"):
            return True
        stem = base.removesuffix("e")
        past = any(lexicon.get(stem + end) in ("VBD", "VBN") for end in ("ed", base[-1] + "ed"))
        if base in lexicon and (past or stem + "ing" in lexicon):
            return True
    return False


def _bases(word: str) -> list[str]:
    """What a word may be the third person or -ing form of, and itself."""
    if word.endswith("ing"):
        stem = word[:-3]
        doubled = [stem[:-1]] if stem[-2:-1] == stem[-1:] else []
        bases = [stem, f"{stem}e", *doubled]
    elif word.endswith("ies"):
        bases = [f"{word[:-3]}y"]
    elif word.endswith("s"):
        bases = [word[:-1], word[:-2]] if word.endswith("es") else [word[:-1]]
    else:
        bases = [word]
    return [base for base in bases if len(base) > 1]


@functools.cache
def _parser():
    from textblob.en import parser  # takes half a second

    return parser
