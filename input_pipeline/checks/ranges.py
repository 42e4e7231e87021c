"""Ranges of numbers, for configs (see `big_vlp.bounds`) and command lines alike."""

import argparse
import dataclasses
import math
import numbers
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; NaN and infinity are in no range.

    Attributes:
      integer: whole numbers only. True and False are no numbers.
      low, high: bounds that belong to the range.
      above, below: bounds that do not.
      also: allowed outside of the bounds.
      none: what None means ("for no clipping"), where None is allowed.
      count: None for a single number; else a list of so many, 0 for any length.
      single: whether a single number may stand for the list.
      named: the list has rows of a string and so many cells: numbers, or lists of them.
      rows: the list has rows of so many numbers.
    """

    integer: bool
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple = ()
    none: str | None = None
    count: int | None = None
    single: bool = False
    named: int | None = None
    rows: int | None = None

    def advice(self, value: Any) -> str | None:
        """What to give instead of a value, such as "give 1 or more"; None where it is allowed."""
        none = "" if self.none is None else f", or None {self.none}".rstrip()
        if value is None and none:
            return None
        items = self._numbers(value)
        right = items is not None and all(map(self._is_number, items))
        if right and all(map(self._contains, items)):
            return None
        span = self._span()
        if not span[0].isdigit():
            return f"give {self._noun()} {span}{none}"
        return f"give {span}{none}" if right else f"give {self._noun()}, {span}{none}"

    def __call__(self, text: str) -> int | float:
        """Reads an argument of a command line: a range is a type of argparse."""
        try:
            value = int(text) if self.integer else float(text)
        except ValueError:
            value = text
        if (advice := self.advice(value)) is not None:
            raise argparse.ArgumentTypeError(f"{text!r}: {advice}")
        return value

    def _numbers(self, value) -> list | None:
        """What must be numbers in a value; None where it is not of the right form."""
        if not isinstance(value, list | tuple):
            return [value] if self.count is None or self.single else None
        if self.count is None or self.count not in (0, len(value)):
            return None
        if self.rows is not None:
            right = all(isinstance(row, list | tuple) and len(row) == self.rows for row in value)
            return [x for row in value for x in row] if right else None
        if self.named is None:
            return list(value)
        if not all(isinstance(row, list | tuple) and len(row) == 1 + self.named for row in value):
            return None
        if not all(isinstance(name, str) for name, *_ in value):
            return None
        cells = [cell for _, *cells in value for cell in cells]
        return [x for cell in cells for x in (cell if isinstance(cell, list | tuple) else [cell])]

    def _is_number(self, value) -> bool:
        kind = numbers.Integral if self.integer else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)

    def _contains(self, value) -> bool:
        return value in self.also or (
            is_finite(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _noun(self) -> str:
        noun = "whole number" if self.integer else "number"
        if self.count is None:
            return f"a {noun}"
        rows = f"{self.count or ''} ".lstrip()
        if self.named is not None:
            rows = f"rows of a string and {self.named} "
        if self.rows is not None:
            rows = f"rows of {self.rows} "
        return f"{f'a {noun} or ' if self.single else ''}a list of {rows}{noun}s"

    def _span(self) -> str:
        """The bounds in words."""
        if self.low is not None and self.high is not None:
            return f"from {self.low} to {self.high}"
        low = None if self.low is None else f"{self.low} or more"
        above = None if self.above is None else f"above {self.above}"
        high = None if self.high is None else f"at most {self.high}"
        below = None if self.below is None else f"below {self.below}"
        also = [f"or {number}" for number in self.also]
        return ", ".join(part for part in (low, above, high, below, *also) if part) or "(finite)"


def is_finite(value: float) -> bool:
    """Whether a number can be computed with: neither NaN nor infinite, nor beyond the floats."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def whole(low: int, high: int | None = None, **options) -> Range:
    """Whole numbers from `low` on, to `high`."""
    return Range(True, low, high, **options)


def real(low: float | None = None, high: float | None = None, **options) -> Range:
    """Finite numbers from `low` on, to `high`."""
    return Range(False, low, high, **options)


SEED = whole(0, 2**32 - 1)  # as far as Grain's shuffle goes
