"""Visual question answering: generated answers against those of people."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from evaluators.shared.rows import gather_rows
from evaluators.shared.written import WritingEvaluator
from input_pipeline.text.templates import make_prompt

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
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
}


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(WritingEvaluator):
    """Yields `exact_match` and `vqa_accuracy`, both for each control, and their `_baseline`.

    `exact_match` is the share of answers that equal the one given most often, `vqa_accuracy` the
    mean of `soft_accuracy`; both after `normalise`, also where all people agree (the official
    script then compares letter by letter, so that "Yes" is no "yes"). The baseline answers every
    question as most questions of this data that begin with the same two words are answered.

    Attributes:
      data: its records have `question` and `answers`.

    Raises:
      ValueError: the data has no questions, the method cannot generate, or an unknown name.
    """

    template: str = "vqa"

    def __post_init__(self):
        super().__post_init__()
        self._ask(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a record has no question, or too long a one."""
        kept, count = {}, len(self.source)

        def ask(row):
            record = self.source[row]
            prompt, kept[row] = self._ask(record)
            return row, record, prompt

        for control in (None, *self.controls):
            texts = self.write(model, ask, count, control)
            asked = gather_rows(kept, count)
            yield from _scores(texts, asked, f"_{control}" if control else "")
        yield from _scores(_most_frequent(asked), asked, "_baseline")

    def _ask(self, record) -> tuple[str, list]:
        question, answers = record.get("question"), list(record.get("answers", ()))
        if not question or not answers:
            raise ValueError(f"Record {record['id']!r} has no question with answers; use VQA data.")
        return make_prompt(self.template, question.strip()), [question, answers]


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
    words = _FULL_STOP.sub("", text).lower().split()
    words = [_WORDS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(_APOSTROPHES.get(word, word) for word in words)


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


def _scores(texts: Sequence[str], asked: list, suffix: str) -> Iterator[tuple[str, float]]:
    exact, soft = [], []
    for text, (_, answers) in zip(texts, asked):
        text, answers = normalise(text), [normalise(answer) for answer in answers]
        exact.append(text == Counter(answers).most_common(1)[0][0])
        soft.append(soft_accuracy(text, answers))
    yield f"exact_match{suffix}", float(np.mean(exact))
    yield f"vqa_accuracy{suffix}", float(np.mean(soft))


def _most_frequent(asked: list) -> list[str]:
    """For each question, the answer given most often to those with the same first two words."""
    counts: dict[str, Counter] = {}
    openings = [" ".join(normalise(question).split()[:2]) for question, _ in asked]
    for opening, (_, answers) in zip(openings, asked):
        counts.setdefault(opening, Counter()).update(normalise(answer) for answer in answers)
    return [counts[opening].most_common(1)[0][0] for opening in openings]
