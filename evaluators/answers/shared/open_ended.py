"""Questions without choices whose answers are texts, numbers or lists: MMMU and MathVista."""

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# What comes before an answer in a sentence; "=" in the last line alone.
_MARKS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NOTHING = frozenset(":,.!?;'")
_NUMBER_KINDS = [
    re.compile(kind)
    for kind in (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
]
# A comma stands in a number between three digits and one to three: "2007,2008" are two.
_NUMBER = re.compile(
    r"(?:(?<!\w)[-+])?(?:\d{1,3}(?:,\d{3})+(?!,?\d)(?:\.\d+)?|\d*\.\d+|\d+)(?:[eE][-+]?\d+)?"
)
_MINUS = str.maketrans(dict.fromkeys("\u2212\ufe63\uff0d", "-"))
_LIST = re.compile(r"\[[^\[\]]*\]")


def is_right(
    text: str, answers: Sequence[str], answer_type: str, precision: float | None = None
) -> bool:
    """Whether an answer is one of those that are right.

    text: as MMMU's script has it: what stands behind the last "is", "so", "=" and so on of a line,
      or all of a text without them, has the words of an answer in it, or a number equal to it to
      two decimals.
    integer, float, list: the last number, or the last list in brackets, of the text; a float is
      rounded to `precision` decimals, an integer loses what is behind its point. MathVista has a
      language model find it in a text that is not the number alone.
    """
    if answer_type == "text":
        return _mentions(text, answers)
    text = text.translate(_MINUS)
    if answer_type == "list":
        found = _last_list(text)
        return found is not None and any(found == _last_list(answer) for answer in answers)
    found = _last_number(text)
    if found is None or not np.isfinite(found):
        return False
    if answer_type == "integer":
        found = float(int(found))
    elif precision is not None:
        found = round(found, int(precision))
    return any(found == _last_number(answer) for answer in answers)


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _last_list(text: str) -> list[Any] | None:
    for written in reversed(_LIST.findall(text)):
        try:
            return ast.literal_eval(written)
        except (SyntaxError, ValueError):
            continue
    return None


def _mentions(text: str, answers: Sequence[str]) -> bool:
    statements = list(_statements(text))
    numbers = [n for s in statements for kind in _NUMBER_KINDS for n in kind.findall(s)]
    said = [value for one in (*statements, *numbers) for value in _values(one)]
    for right in (value for answer in answers for value in _values(answer)):
        for value in said:
            if value == right:
                return True
            if isinstance(value, str) and isinstance(right, str) and right in value:
                return True
    return False


def _statements(text: str) -> Iterator[str]:
    """What a text says in the end of its lines; all of it, where it says nothing so."""
    whole = text.strip().strip(".").lower()
    lines, found = whole.split("\n"), False
    for number, line in enumerate(lines, 1):
        shortest = ""
        for mark in (*_MARKS, "=") if number == len(lines) else _MARKS:
            if mark in line:
                end = line.split(mark)[-1].strip()
                if not shortest or len(end) < len(shortest):
                    shortest = end
        if shortest and shortest not in _NOTHING:
            found = True
            yield shortest
    if not found:
        yield whole


def _values(text: str) -> list[str | float]:
    """A number with two decimals; else the text, a single letter with a space at either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
