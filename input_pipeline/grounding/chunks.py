"""Base noun phrases by rules over part-of-speech tags: [determiners] [modifiers] nouns.

A possessive belongs to the phrase of what is possessed ("the man's hat"), two adjectives with "and"
or a comma between them to one phrase. Tags are TextBlob's (Penn Treebank), which mistakes nouns for
verbs ("a blue cross", "a stop sign") and verbs for nouns ("a dog jumps"): what the words around
demand is put right first.
"""

import functools
import itertools
import re
from typing import NamedTuple

from input_pipeline.words import synsets, tagging

POSSESSIVES = ("PRP$", "WP$")
PLURALS = ("NNS", "NNPS")
DETERMINERS = ("DT", "PDT", "CD", *POSSESSIVES)

_TOKEN = re.compile(r"['’]s\b|\w+(?:[-.]\w+)*|[^\w\s]")
# One letter for each word. d: article or other determiner, c: number, j: modifier, r: adverb,
# n: noun, q: participle that makes a modifier with a noun, p: 's, k: "and", "or" or a comma,
# i: preposition, x: anything else.
_MODIFIERS = "(?:r?j(?:k{1,2}j)*|n+q|c)*"
# Or what could begin one and has no noun, lest it be searched again from each of its words.
_PHRASE = re.compile(f"([dc]*+{_MODIFIERS}n+(?:p{_MODIFIERS}n+)*)|[dc]*+{_MODIFIERS}")
_LONGEST = 300  # words of a caption: behind them none is looked at
# Before a word that is a noun, or belongs to one, whatever the tagger thinks.
_DEMANDING = re.compile(r"[dc](?:[rj]|jkj)*$")
# After a noun that began a list, and before a word that ends one of its members.
_LISTED = re.compile(r"nk{1,2}j*$")
_ENDS = {"and", "or", ",", ".", ""}
_ARTICLES = {"a", "an", "the", "one", "two", "three", "four", "five", "six"}

_AUXILIARIES = {"is", "are", "was", "were", "be", "been", "being", "am", "has", "have", "had"} | {
    *("do", "does", "did", "can", "could", "will", "would", "may", "might", "must", "should")
}
# Groups that do what people and animals do.
_ACTORS = {"people", "men", "group", "crowd", "couple", "team", "family", "herd", "flock"}
# "a snow covered slope"
_COMPOUNDING = {"colored", "coloured", "covered", "eaten", "filled", "lined", "shaped", "topped"}
# Nouns to the tagger: "a cyan cross".
_COLOURS = {"beige", "cyan", "gold", "lavender", "orange", "pink", "silver", "teal", "turquoise"}
# Adjectives and participles to the tagger, prepositions in captions.
_PREPOSITIONS = {"next", "near", "past", "left", "right", "opposite", "like", "inside", "outside"}


class Token(NamedTuple):
    """A word, where it stands, and its tag."""

    text: str
    start: int
    end: int
    tag: str

    @property
    def lower(self) -> str:
        return self.text.lower()


def tagged(text: str) -> list[Token]:
    """Words and marks of a text with their tags. Capitals do not count: titles have too many."""
    matches = list(itertools.islice(_TOKEN.finditer(text), _LONGEST))
    tags = tagging.tag([match[0].lower() for match in matches]) if matches else []
    return [Token(m[0], m.start(), m.end(), tag) for m, (_, tag) in zip(matches, tags)]


def of(caption: str) -> list[list[Token]]:
    """The phrases of a caption, in its order; the last word of each is its noun."""
    tokens = tagged(caption)
    letters = ""
    for place in range(len(tokens)):
        letters += _letter(tokens, place, letters)
    found = [tokens[match.start() : match.end()] for match in _found(letters)]
    # A verb that is a noun here is one for those who read the tag, too.
    return [[*p[:-1], p[-1]._replace(tag=_noun_tag(p[-1].tag))] for p in found]


def _found(letters: str) -> list[re.Match[str]]:
    return [match for match in _PHRASE.finditer(letters) if match[1]]


def _letter(tokens: list[Token], place: int, before: str) -> str:
    """What a word is to phrases, given what those before it are."""
    word, tag = tokens[place].lower, tokens[place].tag
    following = tokens[place + 1] if place + 1 < len(tokens) else Token("", 0, 0, "")
    goes_on = following.tag.startswith(("NN", "JJ", "VBG", "VBN", "CD"))
    goes_on = goes_on and following.lower not in _PREPOSITIONS
    if word in _AUXILIARIES:
        return "x"
    if word in ("'s", "’s") or tag == "POS":
        return "p" if before.endswith("n") else "x"
    if word in ("and", "or", ","):
        return "k"
    if tag in DETERMINERS:
        return "c" if tag == "CD" else "d"
    if tag == "IN":
        return "i"
    if tag.startswith("RB"):
        return "r"
    demanded = _demands(tokens, before)
    if word in _PREPOSITIONS and not (demanded and goes_on):
        return "i"
    if word in _COLOURS and demanded and (goes_on or following.tag in ("VB", "VBP")):
        return "j"
    if tag.startswith(("NN", "FW")):
        return "x" if _is_verb(tokens, place, before, following) else "n"
    if tag.startswith("JJ"):
        # "an orange", "a man and an elderly"
        ends = demanded and not goes_on and following.lower not in ("and", "or", ",")
        return "n" if ends and not following.tag.startswith(("RB", "VB")) else "j"
    if word in _COMPOUNDING and before.endswith("n") and goes_on:
        return "q"
    if tag in ("VBG", "VBN"):
        # "parked cars", not "a man riding horses"
        opens = demanded or not before.rstrip("r") or before.rstrip("r")[-1] in "ijk"
        return "j" if opens and goes_on else "n" if demanded and tag == "VBG" else "x"
    if tag.startswith("VB"):
        if demanded:
            return "j" if following.tag.startswith("NN") else "n"  # "a stop sign", "a blue cross"
        if before.endswith("n") and synsets.load().has_lemma(f"{tokens[place - 1].lower}_{word}"):
            return "n"  # "a teddy bear"
        if _LISTED.search(before) and (following.lower in _ENDS or following.tag == "IN"):
            return "n" if synsets.load().has_lemma(word) else "x"  # "a toilet, sink and mirror"
    return "x"


def _demands(tokens: list[Token], before: str) -> bool:
    """Whether an article, number or possessive pronoun still waits for its noun."""
    match = _DEMANDING.search(before)
    if match is None:
        return False
    first = tokens[match.start()]
    return first.lower in _ARTICLES or first.tag in POSSESSIVES


def _is_verb(tokens: list[Token], place: int, before: str, following: Token) -> bool:
    """Whether what the tagger takes for one more noun is the clause's verb."""
    word, tag = tokens[place].lower, tokens[place].tag
    if not before.endswith("n") or following.tag == "POS":
        return False
    previous, is_known = tokens[place - 1], tagging.is_verb(word)
    is_plural, acts = previous.tag in PLURALS, _acts(previous.lower)
    before_noun = following.tag.startswith("NN")
    has_object = before_noun or following.tag in ("DT", "PRP$")
    goes_on = has_object or (following.tag in ("JJ", "CD") and following.lower not in _PREPOSITIONS)
    if word.endswith("ing"):
        if acts and is_known:
            return True  # "a woman drinking water"
        if is_plural and not before_noun:
            return True  # "people skiing"
        return has_object and is_known and not _is_compound(previous, word, following)
    if tag not in PLURALS:  # "two men cook dinner"
        is_verb = is_plural and acts and goes_on and is_known
        return is_verb and not _is_compound(previous, word, following)
    if before_noun:  # "a cat watches tv", not "a toy sports car"
        return not is_plural and is_known and not _is_compound(previous, word, following)
    if following.tag in ("DT", "PRP$") or (goes_on and acts and is_known):
        return True
    first = tokens[[m.start() for m in _found(before)][-1]].lower
    return first in ("a", "an", "one") or _verb_without_s(word)


def _is_compound(previous: Token, word: str, following: Token) -> bool:
    """Whether a word is one noun with that before or behind it: "ice skating", "sports car"."""
    nouns = synsets.load()
    pairs = (previous.lower, nouns.lemmatise(word)), (word, nouns.lemmatise(following.lower))
    return any(nouns.has_lemma("_".join(pair)) for pair in pairs)


@functools.lru_cache(maxsize=100_000)
def _acts(noun: str) -> bool:
    """Whether a noun is of a person or an animal."""
    nouns = synsets.load()
    kinds = [nouns.senses(kind)[0] for kind in ("person", "animal")]
    first = nouns.senses(noun)[:1]
    return noun in _ACTORS or any(nouns.is_below(key, kind) for key in first for kind in kinds)


@functools.lru_cache(maxsize=100_000)
def _verb_without_s(word: str) -> bool:
    """Whether the tagger knows a word without its s as a verb: "stands", not "shoes"."""
    return word.endswith("s") and tagging.tag([word[:-1]])[0][1] == "VB"


def _noun_tag(tag: str) -> str:
    return tag if tag.startswith("NN") else "NN"
