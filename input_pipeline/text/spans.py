"""Which tokens a text's words became."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Word(NamedTuple):
    """A word, and its tokens' positions: start..stop - 1."""

    text: str
    start: int
    stop: int


def word_spans(
    tokenizer: Callable[[Sequence[str], int], np.ndarray], text: str, length: int
) -> list[Word]:
    """The words of a text, as white space divides it, but for those that were cut off.

    Args:
      tokenizer: see `text.tokenizers.make_tokenizer`.
      length: of the row of tokens.
    """
    words = text.split()
    parts = [" ".join(words[:count]) for count in range(len(words) + 1)]
    # What goes on after a part differs from it where its end stands, if that fits.
    rows = (tokenizer(texts, length + 1) for texts in (parts, [f"{part} a" for part in parts]))
    stops = [int(np.argmin(np.append(row == longer, False))) for row, longer in zip(*rows)]
    return [
        Word(word, start, stop)
        for word, start, stop in zip(words, stops, stops[1:])
        if start < stop < length
    ]
