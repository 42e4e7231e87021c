"""Where images stand in texts: <image>, the next one, or <image 2>, as MMMU numbers them."""

import re
from collections.abc import Iterable, Sequence

_MARK = re.compile(r"<image(?: (\d+))?>")
_PLACE = re.compile(r" *<image (\d+)> *")

Piece = str | int  # text, or the number of an image, from 0


class Numbers:
    """Gives the marks of texts that follow each other their numbers: <image> is the first image
    that none before it names.

    Attributes:
      count: of the images.
    """

    def __init__(self, count: int):
        self.count, self._left = count, list(range(count))

    def given(self, text: str) -> str:
        """The next text with a number in each mark.

        Raises:
          ValueError: it names more images than there are.
        """
        return _MARK.sub(self._numbered, text)

    def given_each(self, texts: Iterable[str]) -> list[str]:
        """The same of texts of which one is drawn; for what follows, the first was."""
        before, found, after = self._left, [], []
        for text in texts:
            self._left = [*before]
            found.append(self.given(text))
            after.append(self._left)
        self._left = after[0] if after else before
        return found

    def _numbered(self, match: re.Match) -> str:
        number = int(match[1]) - 1 if match[1] else next(iter(self._left), self.count)
        if not 0 <= number < self.count:
            raise ValueError(f"its text says {match[0]}, but it has {self.count} images.")
        if number in self._left:
            self._left.remove(number)
        return f"<image {number + 1}>"


def named(texts: Iterable[str]) -> frozenset[int]:
    """Numbers, from 0, of the images that texts name, which `Numbers` has given."""
    return frozenset(int(m[1]) - 1 for text in texts for m in _PLACE.finditer(text))


def place(texts: Sequence[str], images: Iterable[int], in_text: bool = True) -> list[list[Piece]]:
    """Texts that follow each other, cut at their images.

    An image stands where it is named first; further mentions of a number stay text. Images that are
    not named stand before the first text. Spaces beside an image go.

    Args:
      texts: with numbers from `Numbers`.
      images: the numbers, from 0, of those to be placed; what names others stays text.
      in_text: whether texts name images; else all stand in front, and texts stay as they are.
    """
    left = dict.fromkeys(images)
    found: list[list[Piece]] = []
    for text in texts:
        pieces: list[Piece] = []
        start = 0
        for match in _PLACE.finditer(text) if in_text else ():
            number = int(match[1]) - 1
            if number not in left:
                continue
            del left[number]
            pieces += [text[start : match.start()], number]
            start = match.end()
        found.append([piece for piece in (*pieces, text[start:]) if piece != ""])
    return [[*left, *found[0]], *found[1:]]
