"""Noun phrases of a caption: where they stand, what they name, and how many.

A pipeline, chosen by name, tags words and says which of them are one phrase; what a phrase names is
told from the tags in one way for all. Phrases are base noun phrases, as in the grounding data of
Kosmos-2 (arXiv 2306.14824), which CogVLM follows: "a man in a red hat" is "a man" and "a red hat".
"""

import functools
import importlib.metadata
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from input_pipeline.grounding import chunks
from input_pipeline.grounding.chunks import Token
from input_pipeline.words import synsets, tagging

CHUNKER = "chunker"
PIPELINES = "chunker, or spacy:MODEL"

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# At the start of a phrase. "Where is the his dog?" is nothing to ask.
_STRIPPED = {"my", "your", "his", "her", "its", "our", "their", "whose"} | {
    *("this", "that", "these", "those", "all", "both", "such", "what", "which")
}
# No name for a thing that can be told without the rest of the text; "another man" is CogVLM's own.
_VAGUE = {"another", "other", "others", "each", "every", "either", "neither", "no", "same"} | {
    *("one", "ones", "thing", "things", "something", "someone", "it", "any")
}
# WordNet's first sense is one of two that captions mean.
_ALSO = {"bike": ("bicycle",)}
_PREPOSITION = re.compile(r"\b(?:above|at|behind|below|by|from|in|near|of|on|under|with)\b")


class Kind(NamedTuple):
    """What a phrase or a label names: a noun and all words that say more of it, in lower case,
    nouns in the singular. A compound that is no kind of its last word is one noun: "hot dog"."""

    noun: str
    words: frozenset[str]


class Phrase(NamedTuple):
    """A noun phrase.

    Attributes:
      text: as it stands in the caption: caption[start:end].
      kind: what it names.
      number: of things; None for a plural that does not say it.
      is_definite: "the dog", which may have been named before.
      is_vague: "another man", "no dogs": asks for something else than it names.
    """

    text: str
    start: int
    end: int
    kind: Kind
    number: int | None
    is_definite: bool
    is_vague: bool


# Gives the tagged words of each phrase of a caption.
Pipeline = Callable[[str], list[list[Token]]]


@functools.cache
def make_pipeline(name: str) -> Pipeline:
    """A pipeline by its name, once for a process.

    Args:
      name: "chunker", the rules of `chunks` over TextBlob's tagger; or "spacy:MODEL", the noun
        chunks of a spaCy model such as en_core_web_sm.

    Raises:
      ValueError: there is none of this name, or what it needs is not installed.
    """
    kind, _, model = name.partition(":")
    tagging.check(f"--phrases {name}")  # for labels, whatever finds the phrases
    if name == CHUNKER:
        return chunks.of
    if kind != "spacy" or not model:
        raise ValueError(f"--phrases {name!r}: choose {PIPELINES}.")
    nlp = _spacy(model, name)
    return lambda caption: spacy_chunks(nlp(caption))


def versions(name: str) -> dict[str, str]:
    """Package or model -> version, of all that decides what a pipeline of this name finds."""
    found = {"textblob": importlib.metadata.version("textblob")}
    kind, _, model = name.partition(":")
    if kind == "spacy":
        found |= {
            kind: importlib.metadata.version(kind),
            model: _spacy(model, name).meta["version"],
        }
    return found


@functools.cache
def _spacy(model: str, name: str):
    try:
        # Imported here: optional, and it takes seconds.
        import spacy
    except ImportError as error:
        raise ValueError(f"--phrases {name} needs spaCy ({error}): pip install spacy.") from None
    try:
        nlp = spacy.load(model, exclude=["ner"])
    except OSError:
        raise ValueError(
            f"--phrases {name}: spaCy finds no model {model!r}; python -m spacy download {model} "
            "installs those that it publishes."
        ) from None
    if not {"tagger", "parser"} <= set(nlp.pipe_names):
        raise ValueError(f"--phrases {name}: noun chunks need a model with a tagger and a parser.")
    return nlp


def spacy_chunks(document) -> list[list[Token]]:
    """The noun chunks of a spaCy document as tagged words."""
    return [
        [Token(t.text, t.idx, t.idx + len(t.text), t.tag_) for t in chunk if not t.is_space]
        for chunk in document.noun_chunks
    ]


def find(caption: str, pipeline: Pipeline) -> list[Phrase]:
    """The phrases of a caption, in its order; pronouns are none."""
    found = (_phrase(caption, tokens) for tokens in pipeline(caption))
    return [phrase for phrase in found if phrase is not None]


@functools.lru_cache(maxsize=100_000)
def kind_of(label: str) -> Kind:
    """What a detector's label names: its words before a preposition."""
    tokens = chunks.tagged(_PREPOSITION.split(label.strip().lower(), maxsplit=1)[0] or label)
    words = [token for token in tokens if token.tag not in chunks.DETERMINERS]
    words = [token for token in words or tokens if token.text.isalnum()] or tokens
    if words[-1].tag == "VBZ":  # "crosses": a label is no verb
        words[-1] = words[-1]._replace(tag="NNS")
    return _kind(words)


def whole(text: str, start: int) -> Phrase:
    """A stretch of a caption as a phrase, where a detector says that it is one."""
    end = start + len(text)
    moved = [t._replace(start=t.start + start, end=t.end + start) for t in chunks.tagged(text)]
    phrase = _phrase(" " * start + text, moved)
    is_vague = text.lower() in _VAGUE
    return phrase or Phrase(text, start, end, kind_of(text), 1, False, is_vague)


def _phrase(caption: str, tokens: Sequence[Token]) -> Phrase | None:
    tokens = list(tokens)
    while tokens and _is_no_part(*tokens[:2]):
        tokens = tokens[1:]
    if not tokens or tokens[-1].tag.startswith(("PRP", "W", "EX", "DT")):
        return None
    start, end = tokens[0].start, tokens[-1].end
    numbers = [token for token in tokens[:-1] if token.tag == "CD" or token.lower in _NUMBERS]
    if numbers:
        number = _number(numbers[0].lower)
    else:
        number = None if tokens[-1].tag in chunks.PLURALS else 1
    return Phrase(
        caption[start:end],
        start,
        end,
        _kind([token for token in tokens if _tells(token)] or tokens[-1:]),
        number,
        tokens[0].lower == "the",
        # "one dog" counts.
        any(token.lower in _VAGUE for token in tokens if token not in numbers) or number == 0,
    )


def _is_no_part(token: Token, following: Token | None = None) -> bool:
    """Whether a phrase begins behind a token: "his dog", "also a dog"."""
    if token.tag in chunks.POSSESSIVES or token.lower in _STRIPPED:
        return True
    return following is not None and token.tag == "RB" and following.tag in chunks.DETERMINERS


def _tells(token: Token) -> bool:
    return token.tag.startswith(("JJ", "NN", "VB", "FW")) and token.lower not in _STRIPPED


def _number(word: str) -> int | None:
    if word.isdecimal():
        return int(word)
    return _NUMBERS.index(word) if word in _NUMBERS else None


def _kind(tokens: Sequence[Token]) -> Kind:
    words = [_singular(token) for token in tokens]
    noun = words[-1]
    for first in range(max(0, len(words) - 3), len(words) - 1):
        compound = " ".join(words[first:])
        if synsets.load().has_lemma(compound.replace(" ", "_")) and not is_kind(compound, noun):
            noun = compound
            break
    return Kind(noun, frozenset(words))


@functools.lru_cache(maxsize=100_000)
def is_kind(noun: str, general: str) -> bool:
    """Whether WordNet has a noun, in its first sense, below a more general one: man, person.

    Of a compound's own last word any sense will do: a "baseball bat" is a bat, and no animal.
    """
    nouns = synsets.load()
    below, above = senses(noun), senses(general)
    if noun.endswith(f" {general}"):
        above = nouns.senses(general)
        return any(nouns.is_below(lower, upper) for lower in below for upper in above)
    return not set(below) & set(above) and any(
        nouns.is_below(lower, upper) for lower in below for upper in above
    )


@functools.lru_cache(maxsize=100_000)
def is_same(noun: str, other: str) -> bool:
    """Whether two nouns are one, or of one synset: couch, sofa."""
    return noun == other or bool(set(senses(noun)) & set(senses(other)))


def senses(noun: str) -> list[str]:
    """Keys of the synsets that a noun of a caption stands for: the first sense."""
    nouns = synsets.load()
    return [
        key
        for name in (noun, *_ALSO.get(noun, ()))
        for key in nouns.senses(name.replace(" ", "_"))[:1]
    ]


def _singular(token: Token) -> str:
    word = token.lower
    return _singular_of(word) if token.tag in chunks.PLURALS else word


@functools.lru_cache(maxsize=100_000)
def _singular_of(word: str) -> str:
    from textblob.en.inflect import singularize

    nouns = synsets.load()
    form = singularize(word)
    return form if nouns.has_lemma(form) else nouns.lemmatise(word)
