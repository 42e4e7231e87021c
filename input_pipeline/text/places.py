"""Where images stand in texts: <image>, the next one, or <image 2>, as MMMU numbers them."""

import re
from collections.abc import Sequence

_MARK = re.compile(r" *<image(?: (\d+))?> *")

Piece = str | int  # text, or the number of an image, from 0


def place(texts: Sequence[str], count: int) -> list[list[Piece]]:
    """Texts that follow each other, cut at their images.

    An image stands where it is named first; further mentions of a number stay text. Images that are
    not named stand before the first text. Spaces beside an image go. Without images texts are left
    as they are.

    Args:
      count: of the images.

    Raises:
      ValueError: the texts name more images than there are.
    """
    left = dict.fromkeys(range(count))
    found: list[list[Piece]] = []
    for text in texts:
        pieces: list[Piece] = []
        start = 0
        for match in _MARK.finditer(text) if count else ():
            number = int(match[1]) - 1 if match[1] else next(iter(left), count)
            if not 0 <= number < count:
                raise ValueError(f"its text says {match[0].strip()}, but it has {count} images.")
            if number not in left:
                continue
            del left[number]
            pieces += [text[start : match.start()], number]
            start = match.end()
        found.append([piece for piece in (*pieces, text[start:]) if piece != ""])
    return [[*left, *found[0]], *found[1:]]
