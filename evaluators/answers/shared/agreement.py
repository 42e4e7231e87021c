"""Whether two short answers are the same, as the published scripts of VQA compare them."""

import re
from collections.abc import Callable, Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,+\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the scripts remove no more, as they pass a flag in the place of a count
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {word: str(i) for i, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
# What is written with one apostrophe too few gets it back.
_APOSTROPHES = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the scripts' own, the wrong way round


def normalise(answer: str) -> str:
    """An answer as the official script of VQA (arXiv 1505.00468) compares it.

    Lower case, digits for number words to ten, no articles, apostrophes where they are missing. Of
    punctuation % $ # & * : ' and decimal points stay; the rest vanishes beside a space, or where
    there is a number with a comma, and is a space elsewhere.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    text, has_number = answer, _DIGIT_COMMA.search(answer)
    for mark in _PUNCTUATION:
        vanishes = has_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    words = _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS).lower().split()
    words = [_WORDS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(_APOSTROPHES.get(word, word) for word in words)


def normalise_textvqa(answer: str) -> str:
    """An answer as TextVQA's server (arXiv 1904.08920, of MMF) compares it.

    As `normalise`, but commas and question marks vanish first, also within a word, and 's becomes
    a word of its own.
    """
    answer = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise(answer)


def plain(answer: str) -> str:
    """An answer without the space around it, in lower case: to be compared letter by letter."""
    return answer.strip().lower()


NORMALISATIONS: dict[str, Callable[[str], str]] = {
    "vqa": normalise,
    "textvqa": normalise_textvqa,
    "plain": plain,
}


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy of one prediction: right if three people gave it, a third for each of fewer;
    the mean over leaving out one person at a time. Below four answers: 1 if any is equal.

    All arguments are normalised.
    """
    same, others = sum(a == prediction for a in answers), len(answers) - 1
    if others < 3:
        return float(same > 0)
    left_in, left_out = min(same / 3, 1), min((same - 1) / 3, 1)
    return float(((len(answers) - same) * left_in + same * left_out) / len(answers))
