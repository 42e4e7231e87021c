"""Questions with choices, A, B and so on: which choice an answer names."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from evaluators.answers.shared import asking
from evaluators.answers.shared.agreement import plain
from input_pipeline.records import naming
from input_pipeline.text.questions import LETTERS, place_of

_LEADING = re.compile(r"\W*([A-Za-z])(?:\s*[).:,](?!\s*(?:or|and)\b)|\W*$)")
_NAMED = re.compile(r"\(([A-Za-z])\)|\b(?:answer|option|choice)(?: is)?:? \(?([A-Z])\b")
_ALONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")
_ARTICLE = re.compile(r"\bA(?= (?!or\b|and\b)[a-z])")


def choices_of(record) -> tuple[list[str], int | None]:
    """The choices, and the place of the right one where that is known.

    Raises:
      ValueError: there are none, or more than letters, or the answer is no place among them.
    """
    choices = [str(choice) for choice in record.get("choices") or ()]
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(
            f"Record {record['id']!r} has {len(choices)} choices; a question has 2 to "
            f"{len(LETTERS)}, or an answer_type. Use such data, or the evaluator vqa."
        )
    with naming(record):
        return choices, place_of(record)


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The place of the choice that an answer names, or None where it names none, or several.

    The first of these that holds: it begins with a letter that a bracket, stop or its end follows;
    it is a choice to the letter; all letters in brackets, or behind "answer is", are one; there is
    one capital that stands alone (an A before a small word is an article); the words of one choice
    alone stand in it. A rule of ours, not compared with MMBench's and MMMU's scripts; where nothing
    is found the one asks a language model, and the other guesses.
    """
    known = LETTERS[: len(choices)]
    if (found := _LEADING.match(text)) and found[1].upper() in known:
        return known.index(found[1].upper())
    same = [place for place, choice in enumerate(choices) if _bare(choice) == _bare(text)]
    if len(same) == 1:
        return same[0]
    named = {(a or b).upper() for a, b in _NAMED.findall(text)}
    alone = set(_ALONE.findall(_ARTICLE.sub("", text)))
    for letters in (named & set(known), alone & set(known)):
        if letters:
            return known.index(letters.pop()) if len(letters) == 1 else None
    within = [place for place, choice in enumerate(choices) if _stands_in(choice, text)]
    return within[0] if len(within) == 1 else None


def pair_of(record) -> str:
    """By what the two of a pair are known.

    Raises:
      ValueError: the record is of no pair.
    """
    if record.get("pair") is None:
        raise ValueError(
            f"Record {record['id']!r} has no field 'pair', which pairs=True goes by; the source "
            "multiple_choice:kind=mmvp gives it."
        )
    return str(record["pair"])


def check_pairs(kept: Sequence[asking.Kept]) -> None:
    """Raises ValueError where a pair is not of two."""
    sizes = Counter(one["pair"] for one in kept)
    if odd := [name for name, size in sizes.items() if size != 2]:
        raise ValueError(
            f"{len(odd):,} of {len(sizes):,} pairs are not of two records, such as {odd[0]!r} of "
            f"{sizes[odd[0]]}."
        )


def right_of_pairs(right: np.ndarray, kept: Sequence[asking.Kept]) -> float:
    """The share of pairs in which both are right; raises as `check_pairs`."""
    check_pairs(kept)
    hits = Counter(one["pair"] for hit, one in zip(right, kept) if hit)
    return 2 * sum(count == 2 for count in hits.values()) / len(kept)


def chance(kept: Sequence[asking.Kept]) -> float:
    """What an answer at random gets, of the questions that have choices."""
    return float(np.mean([1 / len(one["choices"]) for one in kept if one["choices"]]))


def _bare(text: str) -> str:
    return plain(text).rstrip(".")


def _stands_in(choice: str, text: str) -> bool:
    bare = _bare(choice)
    return bool(bare) and re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", plain(text)) is not None
