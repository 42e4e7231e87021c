"""Questions with choices that are named by letters."""

from collections.abc import Sequence
from typing import Any

from input_pipeline.sources.shared.listed import only, text


def fields(
    id_: str, question: Any, choices: Sequence[Any], answer: int | str | None, **others: Any
) -> dict[str, Any]:
    """What a record has of a question: `id`, `question_id`, `question`, `choices`, and, where the
    answer is known, `answer`, its place among them, and `answers`, its text alone.

    Args:
      answer: the place, a letter, or None.
      others: further fields; those that are None are left out.

    Raises:
      ValueError: there are fewer than two choices, or the answer is none of them.
    """
    where = f"question {id_}:"
    choices = [text(choice, f"{where} the choice") for choice in choices]
    found = {"id": id_, "question_id": id_, "question": text(question, where), "choices": choices}
    if len(choices) < 2:
        raise ValueError(f"{where} its choices are {choices}, of which there should be two or more")
    if answer is not None:
        place = letter_place(answer) if isinstance(answer, str) else answer
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(choices):
            raise ValueError(f"{where} the answer {answer!r} is none of its {len(choices)} choices")
        found |= {"answer": place, "answers": [choices[place]]}
    return found | only(**others)


def letter_place(letter: str) -> int | None:
    """0 of A; None of what is no capital letter."""
    return ord(letter) - ord("A") if len(letter) == 1 and "A" <= letter <= "Z" else None
