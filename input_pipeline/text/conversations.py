"""What can be asked about a record, and its answer: captions, questions, boxes, conversations.

The tasks of CogVLM (arXiv 2311.03079): an answer is what the model learns to write after a prompt.
A task's name says what it makes of a record:

  caption       -> any caption, unasked (an empty query)
  vqa           its question -> one of its answers
  rec           where is a phrase? -> its boxes (referring expression comprehension)
  reg           what is in the boxes of a phrase? -> the phrase (referring expression generation)
  grounded      describe with boxes -> the caption that names the most phrases, with their boxes
  conversation  one round of its conversation, with earlier rounds as history
  vqa_boxes     its question, with boxes behind the phrases that it names -> one of its answers
  pointing      its question -> one of the boxes that are its choices (Visual7W)
  cot           its question -> its rationale with boxes, and "So the answer is ..."
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.records import naming
from input_pipeline.text import instructions, places, questions
from input_pipeline.text.boxes import find_boxes, format_boxes
from input_pipeline.text.captions import texts_of
from input_pipeline.text.instructions import chosen, where_query

HISTORIES = ("all", "previous", "turns")
ASKING = ("vqa", "vqa_boxes", "pointing", "cot")  # tasks about a record's questions

REGION_QUERY, GROUNDED_QUERY = instructions.REGION[0], instructions.GROUNDED[0]
_STOPS = (".", "!", "?")


class Turn(NamedTuple):
    """A query, its answer, and the (query, answer) pairs before it, the oldest first.

    Attributes:
      hidden: numbers, from 0, of the record's `images` that are not shown, as only later rounds or
        other questions name them.
    """

    query: str
    answer: str
    history: tuple[tuple[str, str], ...] = ()
    hidden: frozenset[int] = frozenset()


def make_turn(
    task: str,
    record: Mapping[str, Any],
    rng: random.Random,
    caption_fields: Sequence[str] | None = None,
    history: str = "all",
    varied: bool = False,
) -> Turn | None:
    """One example of a task, drawn by `rng`; None where the record lacks what the task needs.

    Args:
      task: one of TASKS.
      record: see `input_pipeline.sources`. Of one with `images`, the texts of the turn name them by
        number, see `numbered`.
      caption_fields: which captions count; None for all.
      history: of a conversation, whose target is a random round: "all" rounds before it, or
        "previous": with probability 1/2 the one before it, as CogVLM2 is trained. With "turns" the
        target is the last round and all others are before it, for those who learn each of them; so
        it is with all questions (`vqa`) and phrases (`rec`, `reg`) of a record, in random order.
      varied: whether to draw the words of an instruction, see `text.instructions`.

    Raises:
      ValueError: unknown task or history, or what the record has is malformed.
    """
    check_task(task)
    check_history(history)
    with naming(record):
        return TASKS[task](_Drawn(numbered(record), rng, caption_fields, history, varied))


def check_task(task: str) -> None:
    """Raises ValueError unless there is such a task."""
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; choose one of {list(TASKS)}.")


def check_history(history: str) -> None:
    """Raises ValueError unless there is such a rule."""
    if history not in HISTORIES:
        raise ValueError(f"Unknown history {history!r}; choose one of {HISTORIES}.")


def captions_of(record: Mapping[str, Any], fields: Sequence[str] | None = None) -> list[str]:
    """The record's captions in these fields, by default in all; blank ones are left out.

    Raises:
      ValueError: a field is not a list of strings.
    """
    captions = record.get("captions", {})
    names = [name for name in captions if fields is None or name in fields]
    return [text for name in names for text in texts_of(captions, name) if text.strip()]


def boxes_of(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """phrase -> its boxes f64[K, 4] in shares of the image's sides, in the record's order.

    Raises:
      ValueError: not as many boxes as phrases, or no shares (x0 <= x1, y0 <= y1, all in 0..1).
    """
    phrases = list(record.get("phrases", ()))
    boxes = np.asarray(record.get("boxes", ()), np.float64).reshape(-1, 4) if phrases else []
    if len(boxes) != len(phrases):
        raise ValueError(f"there are {len(phrases)} phrases, but {len(boxes)} boxes.")
    grouped: dict[str, list[np.ndarray]] = {}
    for phrase, box in zip(phrases, boxes):
        # Some data sets let boxes end a pixel outside.
        if not ((box[:2] <= box[2:]).all() and (box > -0.05).all() and (box < 1.05).all()):
            raise ValueError(
                f"box {box.tolist()} of {phrase!r} is not (x0, y0, x1, y1) in shares of the "
                "image's sides."
            )
        grouped.setdefault(phrase.strip(), []).append(box)
    return {phrase: np.stack(own) for phrase, own in grouped.items() if phrase}


def rounds_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(query, answer) pairs of the record's conversation: [{"role", "content"}, ...] in which
    "user" and "assistant" take turns, as in CogVLM-SFT-311K.

    Raises:
      ValueError: they do not, or a content is no text.
    """
    messages = record.get("conversation") or ()
    roles = [message.get("role") for message in messages]
    expected = ["user", "assistant"] * (len(messages) // 2)
    if roles != expected or not all(isinstance(m.get("content"), str) for m in messages):
        raise ValueError(
            "a conversation is messages of user and assistant in turn, each with a text 'content'; "
            f"this one has the roles {roles}."
        )
    texts = [message["content"].strip() for message in messages]
    return list(zip(texts[::2], texts[1::2]))


def count_of(record: Mapping[str, Any]) -> int:
    """How many images a record has, or an example of a pack, whose `images` are their number."""
    images = record.get("images")
    if images is None:
        return int("image" in record)
    return images if isinstance(images, int) else len(images)


def numbered(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a number in each place of an image (`text.places`), in the order of its own
    texts: of its conversation, of its questions, and of each caption by itself. The texts of a
    record without `images` stay as they are.

    Raises:
      ValueError: they name more images than there are.
    """
    count, found = count_of(record), dict(record)
    if "images" not in record or not count:
        return found
    if record.get("conversation"):
        numbers = places.Numbers(count)
        found["conversation"] = [
            message | {"content": numbers.given(message["content"])}
            if isinstance(message.get("content"), str)
            else message
            for message in record["conversation"]
        ]
    numbers = places.Numbers(count)
    if record.get("questions"):
        found["questions"] = [_numbered(one, numbers) for one in record["questions"]]
    elif record.get("question"):
        found = _numbered(found, numbers)
    found["captions"] = {
        field: [places.Numbers(count).given(text) for text in texts_of(record["captions"], field)]
        for field in record.get("captions", ())
    }
    return found


def _numbered(one: Mapping[str, Any], numbers: places.Numbers) -> dict[str, Any]:
    found = dict(one)
    for name in ("hint", "question"):
        if isinstance(one.get(name), str):
            found[name] = numbers.given(one[name])
    if one.get("choices"):
        found["choices"] = [numbers.given(str(choice)) for choice in one["choices"]]
    if one.get("rationale"):
        found["rationale"] = numbers.given(str(one["rationale"]))
    if one.get("answers"):
        found["answers"] = numbers.given_each(map(str, one["answers"]))
    return found


def questions_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the record asks: its `questions`, each with `question`, `answers` and what else goes
    with them, or its own one, if it has some."""
    return list(record.get("questions") or ([record] if record.get("question") else []))


def ground(caption: str, boxes: Mapping[str, np.ndarray]) -> tuple[str, int]:
    """A caption with boxes behind the first mention of each phrase, and how many got theirs; see
    `mentions`."""
    found = mentions(caption, boxes)
    text = caption
    for _, end, phrase in reversed(found):
        text = f"{text[:end]} {format_boxes(boxes[phrase])}{text[end:]}"
    return text, len(found)


def mentions(caption: str, phrases: Iterable[str]) -> list[tuple[int, int, str]]:
    """(start, end, phrase) of the first mention of each phrase in a caption, in its order.

    Phrases are matched as whole words in any case; where two overlap, the longer one wins.
    """
    taken: list[tuple[int, int, str]] = []
    for phrase in sorted(phrases, key=len, reverse=True):
        for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE):
            start, end = match.span()
            if all(end <= first or last <= start for first, last, _ in taken):
                taken.append((start, end, phrase))
                break
    return sorted(taken)


class _Drawn(NamedTuple):
    record: Mapping[str, Any]
    rng: random.Random
    caption_fields: Sequence[str] | None
    history: str
    varied: bool

    def some(self, things: list) -> list:
        """All in random order where each is learnt, else one of them."""
        if self.history == "turns":
            return self.rng.sample(things, len(things))
        return [self.rng.choice(things)]

    def form(self, forms: Sequence[str]) -> str:
        return chosen(forms, self.rng, self.varied)


def _turn(rounds: Sequence[tuple[str, str]]) -> Turn | None:
    return Turn(*rounds[-1], tuple(rounds[:-1])) if rounds else None


def _caption(drawn: _Drawn) -> Turn | None:
    captions = captions_of(drawn.record, drawn.caption_fields)
    return Turn("", drawn.rng.choice(captions).strip()) if captions else None


def _vqa(drawn: _Drawn) -> Turn | None:
    return _asked(drawn, questions_of(drawn.record))


def _asked(drawn: _Drawn, asked: list[Mapping[str, Any]]) -> Turn | None:
    """A turn of the questions that have a right answer in words."""
    usable = [
        one
        for one in asked
        if not questions.are_boxes(one.get("choices") or ())
        and (list(one.get("answers") or ()) or questions.letter_of(one))
    ]
    return _answered(drawn, usable, lambda one: _round(one, drawn.rng))


def _answered(
    drawn: _Drawn,
    usable: list[Mapping[str, Any]],
    make: Callable[[Mapping[str, Any]], tuple[str, str]],
) -> Turn | None:
    """A turn of some of the questions, of which `make` makes rounds. Questions know nothing of each
    other: images that others alone name are hidden."""
    if len(usable) > 1:
        usable = drawn.some(usable)
    if (turn := _turn([make(one) for one in usable])) is None:
        return None
    every, own = questions_of(drawn.record), frozenset(map(_images_of, usable))
    others = frozenset().union(*map(_images_of, every))
    return turn._replace(hidden=others.difference(*own))


def _images_of(one: Mapping[str, Any]) -> frozenset[int]:
    """Numbers of the images that a question names."""
    texts = (one.get(name) for name in ("hint", "question", "rationale"))
    several = (text for name in ("choices", "answers") for text in one.get(name) or ())
    return places.named(str(text) for text in (*texts, *several) if text)


def _round(one: Mapping[str, Any], rng: random.Random) -> tuple[str, str]:
    """A question as `evaluators.answers` asks it, and its answer: with choices the letter."""
    question = one["question"].strip()
    if letter := questions.letter_of(one):
        return questions.with_choices(one, question, one["choices"]), letter
    return questions.with_kind(one, question), rng.choice(list(one["answers"]))


def _vqa_boxes(drawn: _Drawn) -> Turn | None:
    asked = questions_of(drawn.record)
    boxes = boxes_of(drawn.record) if asked else {}
    found = []
    for one in asked if boxes else ():
        question, count = ground(one["question"].strip(), boxes)
        if count:
            found.append({**one, "question": question})
    return _asked(drawn, found)


def _pointing(drawn: _Drawn) -> Turn | None:
    usable = [
        one
        for one in questions_of(drawn.record)
        if one.get("answers") and questions.are_boxes(one.get("choices") or ())
    ]
    return _answered(drawn, usable, lambda one: (one["question"].strip(), one["answers"][0]))


def _rec(drawn: _Drawn) -> Turn | None:
    boxes = boxes_of(drawn.record)
    phrases = drawn.some(list(boxes)) if boxes else []
    forms = instructions.WHERE
    return _turn([(where_query(p, drawn.form(forms)), format_boxes(boxes[p])) for p in phrases])


def _reg(drawn: _Drawn) -> Turn | None:
    boxes = boxes_of(drawn.record)
    phrases = drawn.some(list(boxes)) if boxes else []
    # All of them: no one of two dogs is "two dogs".
    forms = instructions.REGION
    return _turn([(drawn.form(forms).format(box=format_boxes(boxes[p])), p) for p in phrases])


def _grounded(drawn: _Drawn) -> Turn | None:
    boxes = boxes_of(drawn.record)
    captions = captions_of(drawn.record, drawn.caption_fields) if boxes else []
    grounded = [ground(caption.strip(), boxes) for caption in captions]
    most = max((count for _, count in grounded), default=0)
    if not most:
        return None
    caption = drawn.rng.choice([text for text, n in grounded if n == most])
    return Turn(drawn.form(instructions.GROUNDED), caption)


def _conversation(drawn: _Drawn) -> Turn | None:
    rounds = rounds_of(drawn.record)
    if not rounds or drawn.history == "turns":
        return _turn(rounds)
    target = drawn.rng.randrange(len(rounds))
    if drawn.history == "all":
        first = 0
    else:
        first = max(0, target - int(drawn.rng.random() < 0.5))
    before, later = (
        places.named(text for both in some for text in both)
        for some in (rounds[: target + 1], rounds[target + 1 :])
    )
    return Turn(*rounds[target], tuple(rounds[first:target]), later - before)


def _cot(drawn: _Drawn) -> Turn | None:
    boxes: dict[str, np.ndarray] | None = None
    usable = []
    for one in questions_of(drawn.record):
        reason = str(one.get("rationale") or "").strip()
        if not (reason and list(one.get("answers") or ())):
            continue
        if not find_boxes(reason):
            boxes = boxes_of(drawn.record) if boxes is None else boxes
            reason, count = ground(reason, boxes)
            if not count:
                continue
        usable.append({**one, "rationale": reason if reason.endswith(_STOPS) else f"{reason}."})
    return _answered(drawn, usable, lambda one: _reasoned(one, drawn))


def _reasoned(one: Mapping[str, Any], drawn: _Drawn) -> tuple[str, str]:
    query = drawn.form(instructions.REASONED).format(question=one["question"].strip())
    answer = drawn.rng.choice(list(one["answers"])).strip().rstrip(".")
    return query, f"{one['rationale']} So the answer is {answer}."


TASKS: dict[str, Callable[[_Drawn], Turn | None]] = {
    "caption": _caption,
    "vqa": _vqa,
    "rec": _rec,
    "reg": _reg,
    "grounded": _grounded,
    "conversation": _conversation,
    "vqa_boxes": _vqa_boxes,
    "pointing": _pointing,
    "cot": _cot,
}
