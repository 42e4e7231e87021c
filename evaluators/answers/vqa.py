"""Visual question answering: generated answers against those of people.

Also what evaluators of generated text share: asking every record one question (`Generator`), and
controls, which show how much of a score needs the image: "blind" replaces every image by its mean
colour, "shuffled" by the image of another record.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from evaluators.shared import common
from input_pipeline.text.templates import check_template, make_prompt
from input_pipeline.views.cogvlm import Rows

CONTROLS = ("blind", "shuffled")

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


class Evaluator:
    """Yields `exact_match` and `vqa_accuracy`, both for each control, and their `_baseline`.

    `exact_match` is the share of answers that equal the one given most often, `vqa_accuracy` the
    mean of `soft_accuracy`; both after `normalise`, also where all people agree (the official
    script then compares letter by letter, so that "Yes" is no "yes"). The baseline answers every
    question as most questions of this data that begin with the same two words are answered.

    Calls generate(model, {"images": u8[B, 1, S, S, 3], "tokens": i32[B, T], "token_types": i32[B,
    T]}) -> i32[B, L]: ids that continue each prompt, to its end of sentence.
    """

    def __init__(
        self,
        predict_fns,
        preprocess,
        mesh: jax.sharding.Mesh,
        *,
        data: Mapping[str, Any],
        template: str = "vqa",
        controls: Sequence[str] = (),
        batch_size: int = 64,
    ):
        """Args as every evaluator's, and:

        data: name and arguments of a data source whose records have `question` and `answers`.
        template: of the prompt, see `input_pipeline.text.templates`.
        controls: of CONTROLS; each takes as long as the evaluation itself.
        batch_size: on all devices together; has no influence on the values.

        Raises:
          ValueError: the data has no questions, the method cannot generate, or an unknown name.
        """
        check_template(template)
        self._source = common.open_source(data)
        self._generator = Generator(predict_fns, preprocess, mesh, self._source, batch_size)
        self._template = template
        self._controls = checked_controls(controls, self._source)
        self._ask(self._source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a record has no question, or too long a one."""
        for control in (None, *self._controls):
            texts, asked = self._generator.answers(model, self._ask, control)
            yield from _scores(texts, asked, f"_{control}" if control else "")
        yield from _scores(_most_frequent(asked), asked, "_baseline")

    def _ask(self, record) -> tuple[str, list]:
        question, answers = record.get("question"), list(record.get("answers", ()))
        if not question or not answers:
            raise ValueError(f"Record {record['id']!r} has no question with answers; use VQA data.")
        return make_prompt(self._template, question.strip()), [question, answers]


class Generator:
    """Asks a model one question about each record of a source."""

    def __init__(self, predict_fns, preprocess, mesh, source, batch_size: int):
        """Raises ValueError where the method cannot generate, or the preprocessing does not fit."""
        common.require(predict_fns, "generate")
        self._rows = Rows.of(preprocess)
        if self._rows.image_token_size is None:
            raise ValueError(
                "This evaluator asks about images; the model has none (image_token_size is None)."
            )
        self._generate = common.RowMap(predict_fns["generate"], mesh)
        self._source, self._preprocess, self._batch_size = source, preprocess, batch_size

    def answers(
        self, model, ask: Callable[[dict], tuple[str, Any]], control: str | None
    ) -> tuple[list[str], list]:
        """What the model writes, stripped, and what `ask` tells of each record, on every host.

        Args:
          ask: record -> (prompt, what to keep of the record as JSON data).
          control: one of CONTROLS, or None.
        """
        kept, count = {}, len(self._source)

        def ask_of(row):
            record = self._source[row]
            prompt, kept[row] = ask(record)
            return row, record, prompt

        texts = self.write(model, ask_of, count, control)
        return texts, common.gather_rows(kept, count)

    def write(
        self, model, ask: Callable[[int], tuple[int, dict, str]], count: int, control: str | None
    ) -> list[str]:
        """What the model writes, stripped, to questions 0..count-1, on every host.

        Args:
          ask: number of a question -> (row of its record, the record, the prompt); from threads.
          control: one of CONTROLS, or None.
        """

        def load(number):
            row, record, prompt = ask(number)
            try:
                arrays = self._rows.prompt(prompt)
            except ValueError as error:
                raise ValueError(f"Record {record['id']!r}: {error}") from error
            image = image_for(row, record, self._source, self._preprocess, control)
            return {"images": image, **arrays}

        outputs = self._generate(model, load, count, self._batch_size)
        return [self._text(ids) for ids in outputs]

    def _text(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == self._rows.text.eos_id)
        return self._rows.text.decode(ids[: ends[0]] if len(ends) else ids).strip()


def checked_controls(controls: Sequence[str], source) -> tuple[str, ...]:
    """The controls; raises ValueError where one is unknown or cannot be had of this source."""
    unknown = sorted(set(controls) - set(CONTROLS))
    if unknown or isinstance(controls, str):
        raise ValueError(f"controls={controls!r}: give a list of some of {CONTROLS}.")
    if "shuffled" in controls and len(source) < 2:
        raise ValueError("The control 'shuffled' needs data of two records or more.")
    return tuple(controls)


def image_for(row: int, record, source, preprocess, control: str | None) -> np.ndarray:
    """u8[1, S, S, 3]: the record's evaluation image, or what a control puts in its place.

    "shuffled" takes the record half the source away: neighbours may share an image.
    """
    if control == "blind":
        size = preprocess.image_size
        mean = np.round(255 * np.array(preprocess.mean)).astype(np.uint8)
        return np.broadcast_to(mean, (1, size, size, 3))
    if control == "shuffled":
        record = source[(row + len(source) // 2) % len(source)]
    return common.image_of(record, preprocess)[None]


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
