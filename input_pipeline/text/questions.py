"""How questions with choices are asked, so that what is learnt is what is asked."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the option's letter from the given choices directly."
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
    if len(choices) > len(LETTERS):
        raise ValueError(f"there are {len(choices)} choices, more than the {len(LETTERS)} letters.")
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


def are_boxes(choices: Sequence[str]) -> bool:
    """Whether choices are boxes as text, as those of Visual7W: such a question is answered with one
    of them and asked without (task `pointing`)."""
    return bool(choices) and all(_BOXES.fullmatch(str(choice)) for choice in choices)
