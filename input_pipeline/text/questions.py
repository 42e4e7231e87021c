"""How questions with choices are asked, so that what is learnt is what is asked."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the option's letter from the given choices directly."
# Of answers to questions without choices.
TYPES = ("text", "integer", "float", "list")
_DECIMALS = {1: "one decimal place", 2: "two decimal places"}
_BOXES = re.compile(r"\s*\[\[[\d,;]+\]\]\s*")


def with_hint(record: Mapping[str, Any], question: str) -> str:
    """The question, behind the record's `hint` where it has one."""
    hint = str(record.get("hint") or "").strip()
    return f"{hint}\n{question}" if hint else question


def listed(choices: Sequence[str]) -> str:
    """A line "A. ..." for each choice.

    Raises:
      ValueError: there are more than letters.
    """
    _check_count(choices)
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))


def with_choices(
    record: Mapping[str, Any],
    question: str,
    choices: Sequence[str],
    instruction: str = INSTRUCTION,
) -> str:
    """Hint, question, choices and instruction, a line or more for each that there is.

    Args:
      choices: the record's, in any order.

    Raises:
      ValueError: as `listed`.
    """
    parts = (with_hint(record, question), listed(choices), instruction)
    return "\n".join(filter(None, parts))


def place_of(record: Mapping[str, Any]) -> int | None:
    """The place of the right one of a question's choices; None without choices, or where it is
    secret.

    Raises:
      ValueError: its `answer` is not the place of a choice.
    """
    choices, answer = list(record.get("choices") or ()), record.get("answer")
    if not choices or answer is None:
        return None
    if answer not in range(len(choices)):
        raise ValueError(
            f"it has answer={answer!r}: that is the place of one of its {len(choices)} choices, "
            "from 0 on, or None."
        )
    return int(answer)


def letter_of(record: Mapping[str, Any]) -> str | None:
    """The letter of `place_of`; raises ValueError also where there are more choices than
    letters."""
    place = place_of(record)
    if place is None:
        return None
    _check_count(record["choices"])
    return LETTERS[place]


def is_open(record: Mapping[str, Any]) -> bool:
    """Whether a question has no choices, but says what kind of answer it has."""
    return not record.get("choices") and record.get("answer_type") in TYPES


def with_kind(record: Mapping[str, Any], question: str) -> str:
    """Hint, question and, of an open question, a line on the kind of its answer: MMMU's own, and
    for numbers and lists those of MathVista as lmms-eval asks it (its first script had others)."""
    asked = with_hint(record, question)
    if not is_open(record):
        return asked
    kind, precision = record["answer_type"], record.get("precision")
    if kind == "text":
        line = "Answer the question using a single word or phrase."
    elif kind == "list":
        line = "Answer the question using a Python list."
    elif kind == "integer":
        line = "Answer the question using a single integer number."
    else:
        decimals = _DECIMALS.get(precision, f"{precision or 0:g} decimal places")
        behind = f" with {decimals}" if precision else ""
        line = f"Answer the question using a single floating-point number{behind}."
    return f"{asked}\n{line}"


def are_boxes(choices: Sequence[str]) -> bool:
    """Whether choices are boxes as text, as those of Visual7W: such a question is answered with one
    of them and asked without (task `pointing`)."""
    return bool(choices) and all(_BOXES.fullmatch(str(choice)) for choice in choices)


def _check_count(choices: Sequence[str]) -> None:
    if len(choices) > len(LETTERS):
        raise ValueError(f"there are {len(choices)} choices, more than the {len(LETTERS)} letters.")
